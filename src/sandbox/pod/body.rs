//! What the API server is asked to make for a run, or ahead of one: a Secret with its token, a policy that closes its network, and the pod. Pure.

use super::word::{CONTAINER_INIT, CONTAINER_RUN};
use super::{FINALIZER, PodConfig};
use crate::api::names::{Epoch, GROUP, Role, RunId, Secret, VERSION};
use crate::api::validate::Limits;
use crate::inside::dial::to_hex;
use crate::inside::wire::{ENV_AUTHORITY, ENV_LINK, ENV_RUN, ENV_TOKEN, HOME, WORKSPACE};
use crate::sandbox::docker::labels;
use crate::sandbox::folder::{ContainerSpec, short};
use crate::sandbox::limits::tmp_bytes_max;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

/// Where the first container puts init, and the other one executes it.
const INIT_FOLDER: &str = "/mosaic-init";
/// Where the first container sees the volume of all files.
const VOLUME_FOLDER: &str = "/volume";
/// A pod asks for one part in so many of the processors that it may use: what is idle is lent, and an agent waits for its model most of the time.
const CPU_REQUEST_SHARE: u32 = 20;
/// A pod asks for one part in so many of the memory that it may use.
const MEMORY_REQUEST_SHARE: u64 = 2;
/// Backstop of the kubelet, in seconds, should everything else have forgotten a pod: longer than any agent may take.
const ACTIVE_SECONDS_MAX: u64 = 8 * 24 * 60 * 60;
/// Bytes that volumes may have beside tree and HOME: base objects, and the task.
const VOLUME_BYTES_MORE: u64 = 4 << 30;

/// Whose the objects of a pod are, as they say it themselves.
pub(super) struct Mark<'a> {
    pub(super) installation: &'a str,
    pub(super) state: &'a Path,
    pub(super) namespace: &'a str,
    /// Name of all three objects.
    pub(super) name: &'a str,
    pub(super) run: &'a RunId,
    /// `namespace/name` of the agent; empty: they were made ahead, for none.
    pub(super) agent: &'a str,
    pub(super) epoch: Epoch,
    /// The record of the agent is in the same cluster.
    pub(super) is_owned: bool,
}

/// Everything that the objects of a pod are made of.
pub(super) struct Plan<'a> {
    pub(super) pod: &'a PodConfig,
    pub(super) mark: Mark<'a>,
    /// Uid and gid of everything in it.
    pub(super) user: u32,
    pub(super) limits: &'a Limits,
    pub(super) wish: &'a ContainerSpec,
    pub(super) token: &'a Secret,
    /// Addresses at which pods find the link.
    pub(super) link: &'a [SocketAddr],
    pub(super) authority: &'a [u8],
    /// Uid of the pod, where it owns the other two, which were made after it.
    pub(super) owner: Option<&'a str>,
}

/// Whether an image has `mosaic-init` itself, so that no first container has to bring it: a kubelet takes up to a second longer with one.
pub(super) fn brings_init(pod: &PodConfig, image: &str) -> bool {
    image == pod.init_image
}

/// Namespace of an agent, and its name there.
pub(super) fn place_of(agent: &str) -> (&str, &str) {
    agent.split_once('/').unwrap_or(("default", agent))
}

impl Mark<'_> {
    /// The run itself does not fit into a label: it is an annotation.
    fn labels(&self) -> BTreeMap<&'static str, String> {
        let role = match &self.run.role {
            _ if self.agent.is_empty() => "prepared",
            Role::Agent => "agent",
            Role::Gate { .. } => "gate",
        };
        BTreeMap::from([
            ("app.kubernetes.io/name", "mosaic-sandbox".to_owned()),
            ("app.kubernetes.io/instance", self.installation.to_owned()),
            ("app.kubernetes.io/component", "sandbox".to_owned()),
            ("app.kubernetes.io/part-of", "mosaic".to_owned()),
            ("app.kubernetes.io/managed-by", "mosaic".to_owned()),
            (labels::INSTALLATION, self.installation.to_owned()),
            (labels::HOME, labels::home(self.state)),
            (labels::POD, self.name.to_owned()),
            (labels::AGENT_UID, self.run.uid.to_string()),
            (labels::RUN_NAME, short(self.run)),
            (labels::ATTEMPT, self.run.attempt.to_string()),
            (labels::ROLE, role.to_owned()),
            (labels::EPOCH, self.epoch.0.to_string()),
        ])
    }

    fn annotations(&self) -> Value {
        json!({ (labels::RUN): serde_json::to_string(self.run).expect("a run is plain data"), (labels::AGENT): self.agent })
    }

    /// The agent, where it is an object that can own something.
    fn owners(&self) -> Option<Value> {
        (self.is_owned && !self.agent.is_empty()).then(|| {
            json!([{
                "apiVersion": format!("{GROUP}/{VERSION}"),
                "kind": "Agent",
                "name": place_of(self.agent).1,
                "uid": self.run.uid,
                "controller": true,
            }])
        })
    }

    /// What makes a pod that was made ahead (`uid`) the pod of this run: a merge patch for this very one, which keeps the finalizers of others.
    /// With ours its end cannot be missed, and the patch is refused where the pod is being deleted already.
    pub(super) fn claim(&self, uid: &str, mut finalizers: Vec<String>) -> Value {
        finalizers.push(FINALIZER.to_owned());
        let mut metadata = json!({
            "uid": uid,
            "labels": self.labels(),
            "annotations": self.annotations(),
            "finalizers": finalizers,
        });
        if let Some(owners) = self.owners() {
            metadata["ownerReferences"] = owners;
        }
        json!({ "metadata": metadata })
    }
}

impl Plan<'_> {
    fn metadata(&self) -> Value {
        let Mark { name, namespace, .. } = self.mark;
        let mut metadata =
            json!({ "name": name, "namespace": namespace, "labels": self.mark.labels(), "annotations": self.mark.annotations() });
        let pod = |uid| json!([{ "apiVersion": "v1", "kind": "Pod", "name": name, "uid": uid }]);
        if let Some(owners) = self.owner.map(pod).or_else(|| self.mark.owners()) {
            metadata["ownerReferences"] = owners;
        }
        metadata
    }

    /// The token, and nothing else.
    pub(super) fn secret(&self) -> Value {
        json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": self.metadata(),
            "immutable": true,
            "stringData": { "token": self.token.expose() },
        })
    }

    /// Nothing comes in, and nothing goes out but to the link.
    pub(super) fn policy(&self) -> Value {
        let to = self.link.iter().map(|address| {
            let bits = if address.is_ipv4() { 32 } else { 128 };
            json!({
                "to": [{ "ipBlock": { "cidr": format!("{}/{bits}", address.ip()) } }],
                "ports": [{ "protocol": "TCP", "port": address.port() }],
            })
        });
        let behind = self.pod.link_pods.iter().map(|(namespace, labels)| {
            json!({
                "to": [{
                    "namespaceSelector": { "matchLabels": { "kubernetes.io/metadata.name": namespace } },
                    "podSelector": { "matchLabels": labels },
                }],
                "ports": [{ "protocol": "TCP", "port": self.pod.listen.port() }],
            })
        });
        json!({
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": self.metadata(),
            "spec": {
                "podSelector": { "matchLabels": { (labels::POD): self.mark.name } },
                "policyTypes": ["Ingress", "Egress"],
                "ingress": [],
                "egress": to.chain(behind).collect::<Vec<_>>(),
            },
        })
    }

    /// The pod.
    pub(super) fn pod(&self) -> Value {
        let pod = self.pod;
        let mut metadata = self.metadata();
        if !self.mark.agent.is_empty() {
            metadata["finalizers"] = json!([FINALIZER]);
        }
        let mut spec = json!({
            "restartPolicy": "Never",
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
            "terminationGracePeriodSeconds": 1,
            "activeDeadlineSeconds": ACTIVE_SECONDS_MAX,
            "hostname": "sandbox",
            "securityContext": {
                "runAsNonRoot": true,
                "runAsUser": self.user,
                "runAsGroup": self.user,
                "seccompProfile": { "type": "RuntimeDefault" },
            },
            "containers": [self.running()],
            "volumes": [
                { "name": "files", "emptyDir": { "sizeLimit": (self.limits.disk_bytes + VOLUME_BYTES_MORE).to_string() } },
                { "name": "tmp", "emptyDir": { "medium": "Memory", "sizeLimit": tmp_bytes_max(self.limits).to_string() } },
            ],
        });
        if !brings_init(pod, &self.wish.image) {
            spec["initContainers"] = json!([self.bringing()]);
            let volumes = spec["volumes"].as_array_mut().expect("it was just made");
            volumes.push(json!({ "name": "init", "emptyDir": { "sizeLimit": (64_u64 << 20).to_string() } }));
        }
        let mut set = |name: &str, value: Value, is_given: bool| {
            if is_given {
                spec[name] = value;
            }
        };
        set("runtimeClassName", json!(self.wish.runtime), self.wish.runtime.is_some());
        let secrets: Vec<Value> = pod.pull_secrets.iter().map(|name| json!({ "name": name })).collect();
        set("imagePullSecrets", json!(secrets), !secrets.is_empty());
        set("nodeSelector", json!(pod.node_selector), !pod.node_selector.is_empty());
        set("tolerations", json!(pod.tolerations), !pod.tolerations.is_empty());
        json!({ "apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec })
    }

    fn container(&self, name: &str, image: &str, command: &[&str], mounts: &[Value]) -> Value {
        let limits = self.limits;
        let mut container = json!({
            "name": name,
            "image": image,
            "command": command,
            "volumeMounts": mounts,
            "securityContext": {
                "allowPrivilegeEscalation": false,
                "readOnlyRootFilesystem": true,
                "runAsNonRoot": true,
                "capabilities": { "drop": ["ALL"] },
            },
            "resources": {
                "limits": { "cpu": format!("{}m", limits.cpu_millis), "memory": limits.memory_bytes.to_string() },
                "requests": {
                    "cpu": format!("{}m", (limits.cpu_millis / CPU_REQUEST_SHARE).max(1)),
                    "memory": (limits.memory_bytes / MEMORY_REQUEST_SHARE).to_string(),
                },
            },
        });
        if let Some(policy) = &self.pod.pull_policy {
            container["imagePullPolicy"] = json!(policy);
        }
        container
    }

    fn bringing(&self) -> Value {
        let target = format!("{INIT_FOLDER}/mosaic-init");
        let mounts = [json!({ "name": "init", "mountPath": INIT_FOLDER }), json!({ "name": "files", "mountPath": VOLUME_FOLDER })];
        let command = [self.pod.init_path.as_str(), "place", &target, VOLUME_FOLDER];
        self.container(CONTAINER_INIT, &self.pod.init_image, &command, &mounts)
    }

    fn running(&self) -> Value {
        let files = |folder: &str, place: &str| json!({ "name": "files", "subPath": folder, "mountPath": place });
        let mut mounts = vec![
            files("workspace", WORKSPACE),
            files("home", HOME),
            files("mosaic", "/mosaic"),
            json!({ "name": "tmp", "mountPath": "/tmp" }),
        ];
        let mut init = self.pod.init_path.clone();
        if !brings_init(self.pod, &self.wish.image) {
            mounts.push(json!({ "name": "init", "mountPath": INIT_FOLDER, "readOnly": true }));
            init = format!("{INIT_FOLDER}/mosaic-init");
        }
        let mut container = self.container(CONTAINER_RUN, &self.wish.image, &[&init, "pod"], &mounts);
        let link: Vec<String> = self.link.iter().map(ToString::to_string).collect();
        container["env"] = json!([
            { "name": ENV_LINK, "value": link.join(",") },
            { "name": ENV_AUTHORITY, "value": to_hex(self.authority) },
            { "name": ENV_RUN, "value": short(self.mark.run) },
            { "name": ENV_TOKEN, "valueFrom": { "secretKeyRef": { "name": self.mark.name, "key": "token" } } },
        ]);
        container["workingDir"] = json!(WORKSPACE);
        container
    }
}

/// The addresses behind `host:port`; a name is looked up here, so that pods need no name service.
/// # Errors
/// In words: it is none, or there is no such host.
pub(super) fn addresses(address: &str) -> Result<Vec<SocketAddr>, String> {
    use std::net::ToSocketAddrs;
    let found = address.to_socket_addrs().map_err(|e| format!("link-address {address:?}: {e}; write it as host:port"))?;
    let mut found: Vec<SocketAddr> = found.collect();
    found.sort();
    found.dedup();
    match found.iter().find(|address| is_useless(address.ip())) {
        Some(address) => Err(format!("link-address: {address} is no address at which a pod finds this controller")),
        None if found.is_empty() => Err(format!("link-address {address:?} has no address")),
        None => Ok(found),
    }
}

fn is_useless(ip: IpAddr) -> bool {
    ip.is_loopback() || ip.is_unspecified()
}
