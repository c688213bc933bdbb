//! How pods are made and how they find this controller. Where nothing says the latter, none are made.

use super::{Check, Settings};
use crate::sandbox::docker::IMAGE_DEFAULT;
use crate::sandbox::docker::image::check_name;
use crate::sandbox::pod::{INIT_PATH_DEFAULT, PodConfig};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::SocketAddr;

/// Where the link of pods listens unless told otherwise.
const LISTEN_DEFAULT: &str = "0.0.0.0:7443";
/// Image that brings mosaic-init unless configured.
const INIT_IMAGE_DEFAULT: &str = "mosaic:latest";

impl Check {
    /// Settings of pods alone mean nothing without the address.
    pub(super) fn pods(&mut self, settings: &Settings) -> Option<PodConfig> {
        let pending_max = self.duration("pod-pending-max", settings.pod_pending_max.clone(), 300, 10, 3600);
        let init_image = settings.init_image.clone().unwrap_or_else(|| INIT_IMAGE_DEFAULT.to_owned());
        if let Err(why) = check_name(&init_image) {
            self.0.push(format!("init-image: {why}"));
        }
        let text = settings.link_listen.as_deref().unwrap_or(LISTEN_DEFAULT);
        let listen = text.parse().unwrap_or_else(|_| {
            self.0.push(format!("link-listen: {text:?} is no address and port; write it as {LISTEN_DEFAULT}"));
            SocketAddr::from(([0, 0, 0, 0], 0))
        });
        let pull_policy = settings.image_pull_policy.clone();
        if pull_policy.as_deref().is_some_and(|policy| !matches!(policy, "Always" | "IfNotPresent" | "Never")) {
            self.0.push(format!("image-pull-policy: {pull_policy:?} is not one of Always, IfNotPresent and Never"));
        }
        let node_selector = self.labels("node-selector", &settings.node_selector);
        let tolerations = settings.toleration.iter().filter_map(|text| self.toleration(text)).collect();
        let link_pods = self.link_pods(&settings.link_pods);
        let address = settings.link_address.clone()?;
        if address.rsplit_once(':').is_none_or(|(host, port)| host.is_empty() || port.parse::<u16>().is_err()) {
            self.0.push(format!("link-address: {address:?} is no host and port; write it as 10.0.0.1:7443"));
        }
        Some(PodConfig {
            listen,
            address,
            link_pods,
            image: settings.sandbox_image.clone().unwrap_or_else(|| IMAGE_DEFAULT.to_owned()),
            init_image,
            init_path: INIT_PATH_DEFAULT.to_owned(),
            pull_policy,
            pull_secrets: settings.image_pull_secret.clone(),
            node_selector,
            tolerations,
            pending_max,
            is_owned: settings.store.as_deref() == Some("kube"),
        })
    }

    fn labels(&mut self, name: &str, texts: &[String]) -> BTreeMap<String, String> {
        let mut labels = BTreeMap::new();
        for text in texts {
            match text.split_once('=') {
                Some((label, value)) if !label.is_empty() => drop(labels.insert(label.to_owned(), value.to_owned())),
                _ => self.0.push(format!("{name}: {text:?}: write it as label=value")),
            }
        }
        labels
    }

    fn link_pods(&mut self, texts: &[String]) -> Option<(String, BTreeMap<String, String>)> {
        let (namespace, _) = texts.first()?.split_once('/').unwrap_or_default();
        let labels: Vec<String> = texts.iter().map(|text| text.strip_prefix(&format!("{namespace}/")).unwrap_or(text).to_owned()).collect();
        if namespace.is_empty() {
            self.0.push("link-pods: begin with the namespace, as mosaic/app.kubernetes.io/name=mosaic".to_owned());
        }
        Some((namespace.to_owned(), self.labels("link-pods", &labels)))
    }

    fn toleration(&mut self, text: &str) -> Option<Value> {
        let Some((taint, effect)) = text.rsplit_once(':').filter(|(taint, _)| !taint.is_empty()) else {
            self.0.push(format!("toleration: {text:?}: write it as key:NoSchedule or key=value:NoSchedule"));
            return None;
        };
        if !matches!(effect, "NoSchedule" | "NoExecute" | "PreferNoSchedule") {
            self.0.push(format!("toleration: {text:?}: {effect:?} is not one of NoSchedule, NoExecute and PreferNoSchedule"));
        }
        Some(match taint.split_once('=') {
            Some((key, value)) => json!({ "key": key, "operator": "Equal", "value": value, "effect": effect }),
            None => json!({ "key": taint, "operator": "Exists", "effect": effect }),
        })
    }
}
