//! What an agent in a pod tries, and must not get.

use super::with_pods;
use crate::harness::{Remote, eventually, gates, task};
use crate::kube::cluster::Cluster;
use serde_json::json;
use std::net::TcpStream;
use std::time::Duration;
use tokio::runtime::Runtime;

/// Each line is `name ok` or `name no`; the first is the control that shows that the probes work at all.
const SCRIPT: &str = r#"
try() { name=$1; shift; if timeout 3 "$@" >/dev/null 2>&1; then echo "$name yes"; else echo "$name no"; fi; }
try control sh -c 'echo x | grep -q x'
try listen sh -c '(echo hi | timeout 2 nc -l -p 9999 >/dev/null &) ; sleep 0.3; nc -w 1 127.0.0.1 9999 </dev/null | grep -q hi'
try apiserver nc -w 2 "$API" "$API_PORT" -e true
try apiserver-node nc -w 2 "$NODE" 16443 -e true
try kubelet nc -w 2 "$NODE" 10250 -e true
try other-pod nc -w 2 "$POD" 8080 -e true
try metadata nc -w 2 169.254.169.254 80 -e true
try dns nslookup kubernetes.default.svc.cluster.local "$DNS"
try internet nc -w 2 1.1.1.1 443 -e true
try token cat /var/run/secrets/kubernetes.io/serviceaccount/token
try root sh -c 'test "$(id -u)" = 0'
try become-root su -c true
try write-root sh -c 'echo x > /x'
try write-etc sh -c 'echo x >> /etc/passwd'
try init-environment grep -qa MOSAIC_LINK_TOKEN /proc/1/environ
try own-environment sh -c 'env | grep -q -e MOSAIC_LINK -e KUBERNETES_'
try init-memory head -c 1 /proc/1/mem
try kill-init sh -c 'kill -9 1 && sleep 1 && false'
try mount mount -t tmpfs x /tmp
try unshare unshare -U true
"#;

const PODS: &str = "/api/v1/namespaces/default/pods";

/// A pod of somebody else's that listens, and can be reached; its address.
fn listener(cluster: &Cluster, runtime: &Runtime, image: &str) -> String {
    let command = ["sh", "-c", "while :; do nc -l -p 8080 -e true; done"];
    let container = json!({ "name": "c", "image": image, "imagePullPolicy": "Never", "command": command });
    let spec = json!({ "terminationGracePeriodSeconds": 0, "containers": [container] });
    let pod = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "listener" }, "spec": spec });
    runtime.block_on(cluster.ask("POST", PODS, Some(&pod))).unwrap();
    let address = std::cell::RefCell::new(String::new());
    eventually("the other pod listens", || {
        let found = runtime.block_on(cluster.ask("GET", &format!("{PODS}/listener"), None)).unwrap();
        *address.borrow_mut() = found["status"]["podIP"].as_str().unwrap_or_default().to_owned();
        format!("{}:8080", address.borrow()).parse().is_ok_and(|at| TcpStream::connect_timeout(&at, Duration::from_secs(1)).is_ok())
    });
    address.into_inner()
}

#[test]
fn an_agent_in_a_pod_gets_nowhere() {
    let Some((cluster, runtime, place)) = with_pods("kube::pods::probes::an_agent_in_a_pod_gets_nowhere") else { return };
    let pod = listener(&cluster, &runtime, &place.image);
    let find = |path: &str| runtime.block_on(cluster.ask("GET", path, None)).ok();
    let ip_of = |path: &str| find(path).and_then(|service| service["spec"]["clusterIP"].as_str().map(str::to_owned));
    let api = ip_of("/api/v1/namespaces/default/services/kubernetes").unwrap();
    let resolver = ip_of("/api/v1/namespaces/kube-system/services/kube-dns").unwrap_or_else(|| pod.clone());
    let node = &place.link_host;
    let mosaic = place.start(&[]);
    let remote = Remote::new(mosaic.folder.path(), "repo", &[(".mosaic/gates.toml", gates("true", "true").as_str())]);
    let script = format!("set +e\nAPI={api}\nAPI_PORT=443\nNODE={node}\nPOD={pod}\nDNS={resolver}\n{SCRIPT}");
    let uid = mosaic.spawn(&task(&remote, "probe", &script));
    mosaic.wait(&uid, "the end of the script", |object| !object["status"]["run"]["finishedAt"].is_null());
    runtime.block_on(cluster.ask("DELETE", &format!("{PODS}/listener"), Some(&json!({ "gracePeriodSeconds": 0 })))).unwrap();
    let (code, log) = mosaic.call("GET", &format!("/agents/{uid}/logs"), None);
    assert_eq!(code, 200, "{log}");
    let log = log.as_str().map_or_else(|| log.to_string(), str::to_owned);
    let tried: Vec<(&str, &str)> = log.lines().filter_map(|line| line.trim().split_once(' ')).collect();
    let names = SCRIPT.lines().filter_map(|line| line.strip_prefix("try ")).filter_map(|line| line.split(' ').next());
    for name in names {
        let wanted = if matches!(name, "control" | "listen") { "yes" } else { "no" };
        assert_eq!(tried.iter().find(|(tried, _)| *tried == name).map(|(_, how)| *how), Some(wanted), "{name}: {log}");
    }
    println!("{} probes from within a pod failed, as they must", tried.len() - 2);
}
