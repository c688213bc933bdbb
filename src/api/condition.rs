//! Condition types and reasons, and the one way to set a condition.
//!
//! Conditions are facts in CamelCase, reasons are causes. `lastTransitionTime` moves only when the status flips, so that a pass
//! that sees nothing new writes nothing.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;

/// The record is valid and everything it names was found.
pub const ADMITTED: &str = "Admitted";
/// Latched and never cleared: whatever happens, this uid does not run again.
pub const KILLED: &str = "Killed";
/// The tree of the current attempt is laid out.
pub const WORKSPACE_READY: &str = "WorkspaceReady";
/// The sandbox of the current attempt was granted its start.
pub const SANDBOX_READY: &str = "SandboxReady";
/// The agent of the current attempt has ended and nothing of it runs.
pub const AGENT_FINISHED: &str = "AgentFinished";
/// Every required gate passed on the head commit.
pub const GATES_PASSED: &str = "GatesPassed";
/// The remote ref was read back and equals the gated commit.
pub const PUSHED: &str = "Pushed";
/// Sandboxes and trees are gone.
pub const CLEANED_UP: &str = "CleanedUp";

/// Reasons: one word per cause, the same in conditions, `status.reason`, events and metrics.
pub mod reason {
    /// The condition is met.
    pub const MET: &str = "Met";
    /// Not yet known.
    pub const PENDING: &str = "Pending";
    /// The spec itself is wrong.
    pub const INVALID_SPEC: &str = "InvalidSpec";
    /// The repository does not exist or is not a git repository.
    pub const REPOSITORY_NOT_FOUND: &str = "RepositoryNotFound";
    /// The repository is a path outside the folders that the operator allows.
    pub const REPOSITORY_NOT_ALLOWED: &str = "RepositoryNotAllowed";
    /// The repository has no commit yet.
    pub const REPOSITORY_EMPTY: &str = "RepositoryEmpty";
    /// The base branch does not exist.
    pub const BRANCH_NOT_FOUND: &str = "BranchNotFound";
    /// The target branch belongs to somebody else.
    pub const BRANCH_TAKEN: &str = "BranchTaken";
    /// Another agent has the same task id.
    pub const TASK_ID_TAKEN: &str = "TaskIdTaken";
    /// The gates file of the trusted branch is wrong.
    pub const INVALID_GATES: &str = "InvalidGates";
    /// A required gate is defined nowhere.
    pub const GATE_MISSING: &str = "GateMissing";
    /// Something the spec asks for is not built yet.
    pub const NOT_SUPPORTED: &str = "NotSupported";
    /// `dependsOn` leads back to the agent itself.
    pub const DEPENDENCY_CYCLE: &str = "DependencyCycle";
    /// A dependency does not exist.
    pub const DEPENDENCY_MISSING: &str = "DependencyMissing";
    /// A dependency has not completed yet.
    pub const DEPENDENCY_PENDING: &str = "DependencyPending";
    /// A dependency failed or was killed.
    pub const DEPENDENCY_FAILED: &str = "DependencyFailed";
    /// Others are more urgent, or the cap on running agents is reached.
    pub const QUEUED: &str = "Queued";
    /// The cap on starting agents is reached.
    pub const STARTING_LIMIT: &str = "StartingLimit";
    /// A halt matches.
    pub const HALTED: &str = "Halted";
    /// `spec.suspend` is true.
    pub const SUSPENDED: &str = "Suspended";
    /// Waits before the next attempt.
    pub const BACKOFF: &str = "Backoff";
    /// The look at a sandbox or tree failed: nothing is made and nothing destroyed.
    pub const CANNOT_OBSERVE: &str = "CannotObserve";
    /// The repository is being resolved.
    pub const RESOLVING: &str = "Resolving";
    /// The sandbox is being made.
    pub const STARTING_SANDBOX: &str = "StartingSandbox";
    /// The agent runs.
    pub const AGENT_RUNNING: &str = "AgentRunning";
    /// The tree is being read into a commit.
    pub const TAKING_SNAPSHOT: &str = "TakingSnapshot";
    /// The candidate is being compared with the remote's base branch.
    pub const INTEGRATING: &str = "Integrating";
    /// Gates run.
    pub const GATES_RUNNING: &str = "GatesRunning";
    /// The gated commit is being pushed.
    pub const PUSHING: &str = "Pushing";
    /// Sandboxes and trees are being removed.
    pub const CLEANING_UP: &str = "CleaningUp";
    /// Delivered.
    pub const DELIVERED: &str = "Delivered";
    /// The agent changed nothing and said so.
    pub const NO_CHANGES: &str = "NoChanges";
    /// The agent's command ended with another code than 0, or by a signal.
    pub const AGENT_FAILED: &str = "AgentFailed";
    /// The agent exceeded a limit of its sandbox.
    pub const LIMIT_EXCEEDED: &str = "LimitExceeded";
    /// The agent changed nothing and gave no reason.
    pub const NOTHING_CHANGED: &str = "NothingChanged";
    /// The tree cannot become a commit.
    pub const TREE_REFUSED: &str = "TreeRefused";
    /// A gate refused the commit.
    pub const GATE_REJECTED: &str = "GateRejected";
    /// A gate could not judge.
    pub const GATE_ERROR: &str = "GateError";
    /// The change conflicts with what others pushed.
    pub const MERGE_CONFLICT: &str = "MergeConflict";
    /// The base branch moved again and again.
    pub const BASE_MOVING: &str = "BaseMoving";
    /// The remote refused the push.
    pub const PUSH_REJECTED: &str = "PushRejected";
    /// The remote could not be reached.
    pub const REMOTE_UNAVAILABLE: &str = "RemoteUnavailable";
    /// The remote was reached and then said nothing for too long.
    pub const REMOTE_SILENT: &str = "RemoteSilent";
    /// The remote sends us to another address, which is not followed.
    pub const REMOTE_REDIRECTED: &str = "RemoteRedirected";
    /// The remote did not accept the operator's credential, or there is none for it.
    pub const CREDENTIAL_REFUSED: &str = "CredentialRefused";
    /// The remote's certificate or host key is not one that is trusted.
    pub const HOST_NOT_TRUSTED: &str = "HostNotTrusted";
    /// `spec.timeout` is over.
    pub const TIMEOUT: &str = "Timeout";
    /// `spec.idleTimeout` is over.
    pub const IDLE_TIMEOUT: &str = "IdleTimeout";
    /// The sandbox ended without its init's word.
    pub const SANDBOX_LOST: &str = "SandboxLost";
    /// No renewal reached the sandbox for the lease time.
    pub const LEASE_EXPIRED: &str = "LeaseExpired";
    /// The sandbox could not be made.
    pub const SANDBOX_FAILED: &str = "SandboxFailed";
    /// It was signalled and its grant is revoked, but nobody has seen it gone.
    pub const REVOKED_UNVERIFIED: &str = "RevokedUnverified";
    /// This controller does not serve the driver that the spec asks for.
    pub const DRIVER_NOT_SERVED: &str = "DriverNotServed";
    /// The container engine does not answer.
    pub const ENGINE_UNAVAILABLE: &str = "EngineUnavailable";
    /// The container engine does not see the state folder where this controller does.
    pub const FILES_NOT_SHARED: &str = "FilesNotShared";
    /// There is no image of that name.
    pub const IMAGE_NOT_FOUND: &str = "ImageNotFound";
    /// The registry refuses to give the image to this engine.
    pub const IMAGE_REFUSED: &str = "ImageRefused";
    /// The image could not be pulled.
    pub const IMAGE_PULL_FAILED: &str = "ImagePullFailed";
    /// The image is for another kind of machine.
    pub const IMAGE_PLATFORM: &str = "ImagePlatformMismatch";
    /// The container engine has no such runtime.
    pub const RUNTIME_NOT_FOUND: &str = "RuntimeNotFound";
    /// Isolation or a limit that a sandbox needs is not in force.
    pub const NOT_ISOLATED: &str = "NotIsolated";
    /// No node of the cluster takes the sandbox's pod, in the scheduler's words.
    pub const UNSCHEDULABLE: &str = "Unschedulable";
    /// The quota of the agent's namespace has no room for the sandbox's pod.
    pub const QUOTA_EXCEEDED: &str = "QuotaExceeded";
    /// The cluster takes no such pod; the message has its words.
    pub const POD_REFUSED: &str = "PodRefused";
    /// The API server does not answer, so that no pod can be made now.
    pub const CLUSTER_UNAVAILABLE: &str = "ClusterUnavailable";
    /// The workspace could not be made, read or removed.
    pub const WORKSPACE_FAILED: &str = "WorkspaceFailed";
    /// A mistake of this program.
    pub const INTERNAL_ERROR: &str = "InternalError";
    /// Killed on request.
    pub const KILLED: &str = "Killed";
    /// The agent was killed when a push may have been under way, and whether the remote has it was not seen.
    pub const PUSH_UNKNOWN: &str = "PushUnknown";
}

/// Sets one condition; adds it if it is new. Returns whether anything but times changed.
pub fn set(conditions: &mut Vec<Condition>, type_: &str, status: bool, reason: &str, message: &str, now: Timestamp) -> bool {
    let status = if status { "True" } else { "False" };
    if let Some(found) = conditions.iter_mut().find(|c| c.type_ == type_) {
        if found.status == status && found.reason == reason && found.message == message {
            return false;
        }
        if found.status != status {
            found.last_transition_time = Time(now);
        }
        status.clone_into(&mut found.status);
        reason.clone_into(&mut found.reason);
        message.clone_into(&mut found.message);
        return true;
    }
    conditions.push(Condition {
        type_: type_.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message: message.to_owned(),
        last_transition_time: Time(now),
        observed_generation: None,
    });
    true
}

/// The condition of that type, if it was ever set.
#[must_use]
pub fn get<'a>(conditions: &'a [Condition], type_: &str) -> Option<&'a Condition> {
    conditions.iter().find(|c| c.type_ == type_)
}

/// Whether the condition is set and true.
#[must_use]
pub fn is_true(conditions: &[Condition], type_: &str) -> bool {
    get(conditions, type_).is_some_and(|c| c.status == "True")
}
