//! `Halt`: while one matches, nothing that matches starts and everything that matches is killed.

#![allow(clippy::duplicated_attributes, reason = "the lint reads arguments of different columns as one attribute")]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector, MicroTime};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What is halted, why, by whom, and when it ends.
#[derive(CustomResource, Serialize, Deserialize, JsonSchema, Debug, Clone, PartialEq, Default)]
#[kube(
    group = "mosaicstack.dev",
    version = "v1alpha1",
    kind = "Halt",
    plural = "halts",
    category = "mosaic",
    doc = "A stop order: while it exists, nothing that matches starts and everything that matches is killed.",
    status = "HaltStatus",
    derive = "PartialEq",
    derive = "Default",
    printcolumn(name = "Reason", type_ = "string", json_path = ".spec.reason"),
    printcolumn(name = "By", type_ = "string", json_path = ".spec.who"),
    printcolumn(name = "Release", type_ = "string", json_path = ".spec.release"),
    printcolumn(name = "Killed", type_ = "integer", json_path = ".status.killed"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct HaltSpec {
    /// Which agents, by label. Absent or empty: all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<LabelSelector>,
    /// Only agents of this namespace. Absent: of every namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub namespace: Option<String>,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub reason: Option<String>,
    /// Who asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub who: Option<String>,
    /// whenDone (default): goes by itself once every match is latched as killed. manual: stays until deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<HaltRelease>,
}

/// When a halt ends.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Copy, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
pub enum HaltRelease {
    /// Once every match is latched as killed.
    #[default]
    WhenDone,
    /// When somebody deletes it.
    Manual,
}

/// How far the halt is.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct HaltStatus {
    /// When it was first acted on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engaged_at: Option<MicroTime>,
    /// How many agents it has latched as killed.
    #[serde(default)]
    pub killed: u32,
    /// How many matching agents are not latched yet.
    #[serde(default)]
    pub pending: u32,
    /// Facts: Engaged, Done.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}
