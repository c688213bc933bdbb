//! What a workspace could not do: each variant names the repository, branch or folder, and says what helps.

use crate::api::condition::reason;
use crate::api::names::{Attempt, Branch, CommitId, Uid};
use std::path::PathBuf;
use std::time::Duration;

/// What a workspace could not do.
#[derive(Debug, thiserror::Error)]
pub enum WorkspaceError {
    /// A setting, or something that the host lacks.
    #[error("{0}")]
    Unusable(String),
    /// The repository is written in a way that is not understood or not safe.
    #[error("repository {repository:?} cannot be used: {why}")]
    BadAddress {
        /// As the record has it.
        repository: String,
        /// What is wrong and what to write instead.
        why: String,
    },
    /// The path is outside the folders that the operator allows.
    #[error("repository {repository:?} is not beneath a folder that is allowed: {advice}")]
    NotAllowed {
        /// As the record has it.
        repository: String,
        /// Which folders are, or how to allow one.
        advice: String,
    },
    /// Nothing is there, or something that is no git repository.
    #[error("repository {repository:?} was not found: {why}")]
    NotFound {
        /// As the record has it.
        repository: String,
        /// What was seen.
        why: String,
    },
    /// It has no commit.
    #[error("repository {repository:?} is empty: push a first commit to it")]
    Empty {
        /// As the record has it.
        repository: String,
    },
    /// The branch does not exist.
    #[error("branch {branch} does not exist in {repository:?}: {advice}")]
    BranchNotFound {
        /// As the record has it.
        repository: String,
        /// The wanted branch.
        branch: Branch,
        /// The default branch and some that exist.
        advice: String,
    },
    /// A branch of that name and another one cannot both exist.
    #[error("branch {target} cannot be made in {repository:?} beside its branch {present}: set spec.context.targetBranch")]
    BranchInTheWay {
        /// As the record has it.
        repository: String,
        /// The branch to push to.
        target: Branch,
        /// The one that exists.
        present: Branch,
    },
    /// Nobody said which branch, and the repository does not say either.
    #[error("repository {repository:?} has no default branch: its HEAD names no branch that exists; {advice}")]
    NoDefaultBranch {
        /// As the record has it.
        repository: String,
        /// How to set one, and some branches that exist.
        advice: String,
    },
    /// The remote did not answer as it should.
    #[error("failed to {what} {repository:?}: {words}")]
    Remote {
        /// Verb with preposition.
        what: &'static str,
        /// As the record has it.
        repository: String,
        /// The last words of the `git` program.
        words: String,
    },
    /// The remote was reached, and one side did not want the other.
    #[error("failed to {what} {repository:?}: {}; {words}; {note}", cause.sentence())]
    RemoteRefused {
        /// Verb with preposition.
        what: &'static str,
        /// As the record has it.
        repository: String,
        /// Who refused whom.
        cause: RemoteCause,
        /// The last words of the `git` program.
        words: String,
        /// Which part of the operator's configuration counted.
        note: String,
    },
    /// The remote said nothing for too long.
    #[error("failed to {what} {repository:?}: it was silent for {limit:?}, so it was given up")]
    RemoteSilent {
        /// Verb with preposition.
        what: &'static str,
        /// As the record has it.
        repository: String,
        /// How long.
        limit: Duration,
    },
    /// The remote did not answer in time.
    #[error("failed to {what} {repository:?}: no end after {limit:?}, so it was stopped")]
    RemoteTimeout {
        /// Verb with preposition.
        what: &'static str,
        /// As the record has it.
        repository: String,
        /// The deadline.
        limit: Duration,
    },
    /// The commit is in neither of our repositories.
    #[error("commit {commit} of {repository:?} is not here: resolve the repository again")]
    CommitMissing {
        /// As the record has it.
        repository: String,
        /// The wanted commit.
        commit: CommitId,
    },
    /// A file of the repository is not a plain file, or too large to be read.
    #[error("{path} of commit {commit} in {repository:?} cannot be read: {why}")]
    BadFile {
        /// As the record has it.
        repository: String,
        /// The commit.
        commit: CommitId,
        /// Path in it.
        path: String,
        /// Why.
        why: String,
    },
    /// A commit holds something that is never laid out.
    #[error("commit {commit} of {repository:?} cannot be laid out: {why}")]
    BadTree {
        /// As the record has it.
        repository: String,
        /// The commit.
        commit: CommitId,
        /// Which path, and why.
        why: String,
    },
    /// An effect of an older attempt came late.
    #[error("refused: the tree of agent {uid} belongs to attempt {present}, this is for {asked}")]
    OlderAttempt {
        /// The agent.
        uid: Uid,
        /// Attempt that the tree is for.
        present: Attempt,
        /// Attempt that was asked for.
        asked: Attempt,
    },
    /// There is no tree to read.
    #[error("agent {uid} has no complete tree: lay it out first")]
    NoTree {
        /// The agent.
        uid: Uid,
    },
    /// One of our own repositories refused.
    #[error("failed to {what} in our copy of {repository:?}")]
    Git {
        /// Verb and object.
        what: &'static str,
        /// As the record has it.
        repository: String,
        /// Why.
        #[source]
        source: git2::Error,
    },
    /// A file or mount.
    #[error("failed to {what} {path:?}")]
    Io {
        /// Verb.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// Why a remote that answers cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RemoteCause {
    /// It did not accept our credential, or there is none.
    Credential,
    /// We do not trust its certificate or host key.
    Trust,
    /// It sends us elsewhere.
    Redirect,
}

impl RemoteCause {
    fn sentence(self) -> &'static str {
        match self {
            Self::Credential => "the credential was refused or is missing",
            Self::Trust => {
                "the host is not trusted: its certificate is expired, for another name or by an unknown authority, or its host key is not the known one"
            }
            Self::Redirect => "it redirects elsewhere, which is not followed: write the address where the repository is",
        }
    }
}

impl WorkspaceError {
    /// One of `condition::reason`.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::BadAddress { .. } => reason::INVALID_SPEC,
            Self::NotAllowed { .. } => reason::REPOSITORY_NOT_ALLOWED,
            Self::NotFound { .. } => reason::REPOSITORY_NOT_FOUND,
            Self::Empty { .. } => reason::REPOSITORY_EMPTY,
            Self::BranchNotFound { .. } | Self::NoDefaultBranch { .. } => reason::BRANCH_NOT_FOUND,
            Self::BranchInTheWay { .. } => reason::BRANCH_TAKEN,
            Self::Remote { .. } | Self::RemoteTimeout { .. } => reason::REMOTE_UNAVAILABLE,
            Self::RemoteSilent { .. } => reason::REMOTE_SILENT,
            Self::RemoteRefused { cause: RemoteCause::Credential, .. } => reason::CREDENTIAL_REFUSED,
            Self::RemoteRefused { cause: RemoteCause::Trust, .. } => reason::HOST_NOT_TRUSTED,
            Self::RemoteRefused { cause: RemoteCause::Redirect, .. } => reason::REMOTE_REDIRECTED,
            Self::BadFile { .. } | Self::BadTree { .. } => reason::INVALID_SPEC,
            Self::Unusable(_)
            | Self::CommitMissing { .. }
            | Self::OlderAttempt { .. }
            | Self::NoTree { .. }
            | Self::Git { .. }
            | Self::Io { .. } => reason::WORKSPACE_FAILED,
        }
    }

    /// Whether the record asks for what cannot be (true), or the infrastructure failed and trying again may help (false).
    #[must_use]
    pub fn is_invalid(&self) -> bool {
        match self {
            Self::BadAddress { .. }
            | Self::NotAllowed { .. }
            | Self::NotFound { .. }
            | Self::Empty { .. }
            | Self::BranchNotFound { .. }
            | Self::NoDefaultBranch { .. }
            | Self::BranchInTheWay { .. }
            | Self::RemoteRefused { .. }
            | Self::BadFile { .. }
            | Self::BadTree { .. } => true,
            Self::Unusable(_)
            | Self::Remote { .. }
            | Self::RemoteTimeout { .. }
            | Self::RemoteSilent { .. }
            | Self::CommitMissing { .. }
            | Self::OlderAttempt { .. }
            | Self::NoTree { .. }
            | Self::Git { .. }
            | Self::Io { .. } => false,
        }
    }
}

/// Adds what was tried on which path.
pub(super) fn io<E: Into<std::io::Error>>(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(E) -> WorkspaceError {
    let path = path.into();
    move |source| WorkspaceError::Io { what, path, source: source.into() }
}

/// Adds what was tried in which repository.
pub(super) fn git(what: &'static str, repository: &str) -> impl FnOnce(git2::Error) -> WorkspaceError + use<> {
    let repository = repository.to_owned();
    move |source| WorkspaceError::Git { what, repository, source }
}
