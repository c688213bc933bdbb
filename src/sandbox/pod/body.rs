//! What the API server is asked to make for a run: a Secret with its token, a policy that closes its network, and the pod. Pure.

use super::word::{CONTAINER_INIT, CONTAINER_RUN};
use super::{FINALIZER, PodConfig};
use crate::api::names::{GROUP, Role, RunId, Secret, VERSION};
use crate::inside::dial::to_hex;
use crate::inside::wire::{ENV_AUTHORITY, ENV_LINK, ENV_RUN, ENV_TOKEN, HOME, WORKSPACE};
use crate::sandbox::docker::labels;
use crate::sandbox::folder::{ContainerSpec, StoredSpec, short};
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

/// Everything that the objects of a run are made of.
pub(super) struct Plan<'a> {
    pub(super) pod: &'a PodConfig,
    pub(super) installation: &'a str,
    pub(super) state: &'a Path,
    pub(super) spec: &'a StoredSpec,
    pub(super) wish: &'a ContainerSpec,
    /// Name of all three objects.
    pub(super) name: &'a str,
    pub(super) token: &'a Secret,
    /// Addresses at which pods find the link.
    pub(super) link: &'a [SocketAddr],
    pub(super) authority: &'a [u8],
}

/// Whether an image has `mosaic-init` itself, so that no first container has to bring it: a kubelet takes up to a second longer with one.
pub(super) fn brings_init(pod: &PodConfig, image: &str) -> bool {
    image == pod.init_image
}

/// Namespace of an agent, and its name there.
pub(super) fn place_of(agent: &str) -> (&str, &str) {
    agent.split_once('/').unwrap_or(("default", agent))
}

impl Plan<'_> {
    fn metadata(&self) -> Value {
        let StoredSpec { run, epoch, agent, .. } = self.spec;
        let (namespace, name) = place_of(agent);
        let mut metadata = json!({
            "name": self.name,
            "namespace": namespace,
            "labels": labels_of(self.installation, self.state, run, epoch.0),
            "annotations": { (labels::RUN): serde_json::to_string(run).expect("a run is plain data"), (labels::AGENT): agent },
        });
        if self.pod.is_owned {
            metadata["ownerReferences"] = json!([{
                "apiVersion": format!("{GROUP}/{VERSION}"),
                "kind": "Agent",
                "name": name,
                "uid": run.uid,
                "controller": true,
            }]);
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
                "podSelector": { "matchLabels": { (labels::AGENT_UID): self.spec.run.uid, (labels::RUN_NAME): short(&self.spec.run) } },
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
        metadata["finalizers"] = json!([FINALIZER]);
        let mut spec = json!({
            "restartPolicy": "Never",
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
            "terminationGracePeriodSeconds": 1,
            "activeDeadlineSeconds": ACTIVE_SECONDS_MAX,
            "hostname": "sandbox",
            "securityContext": {
                "runAsNonRoot": true,
                "runAsUser": self.spec.launch.uid,
                "runAsGroup": self.spec.launch.gid,
                "seccompProfile": { "type": "RuntimeDefault" },
            },
            "containers": [self.running()],
            "volumes": [
                { "name": "files", "emptyDir": { "sizeLimit": (self.spec.limits.disk_bytes + VOLUME_BYTES_MORE).to_string() } },
                { "name": "tmp", "emptyDir": { "medium": "Memory", "sizeLimit": tmp_bytes_max(&self.spec.limits).to_string() } },
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
        let limits = &self.spec.limits;
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
            { "name": ENV_RUN, "value": short(&self.spec.run) },
            { "name": ENV_TOKEN, "valueFrom": { "secretKeyRef": { "name": self.name, "key": "token" } } },
        ]);
        container["workingDir"] = json!(WORKSPACE);
        container
    }
}

/// Labels of all objects of a run. The run itself does not fit into one: it is an annotation.
fn labels_of(installation: &str, state: &Path, run: &RunId, epoch: u64) -> BTreeMap<&'static str, String> {
    let role = match &run.role {
        Role::Agent => "agent",
        Role::Gate { .. } => "gate",
    };
    BTreeMap::from([
        ("app.kubernetes.io/name", "mosaic-sandbox".to_owned()),
        ("app.kubernetes.io/instance", installation.to_owned()),
        ("app.kubernetes.io/component", "sandbox".to_owned()),
        ("app.kubernetes.io/part-of", "mosaic".to_owned()),
        ("app.kubernetes.io/managed-by", "mosaic".to_owned()),
        (labels::INSTALLATION, installation.to_owned()),
        (labels::HOME, labels::home(state)),
        (labels::AGENT_UID, run.uid.to_string()),
        (labels::RUN_NAME, short(run)),
        (labels::ATTEMPT, run.attempt.to_string()),
        (labels::ROLE, role.to_owned()),
        (labels::EPOCH, epoch.to_string()),
    ])
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
