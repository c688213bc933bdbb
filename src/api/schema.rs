//! The records' schema: printed as custom resource definitions, and checked here with the words of one text for every store.
//!
//! Flow of `check`: unknown fields go (as the API server prunes them), the JSON schema is checked (`schema/sentences.rs` turns what it
//! finds into sentences), then the CEL rules. Both come from the same definitions that `mosaic crd` prints, compiled once.
//! What needs other records or the outside (task ids, cycles, repositories) is not looked at here.

mod sentences;

use crate::api::agent::Agent;
use crate::api::halt::Halt;
use crate::store::Kind;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use kube::core::cel::{CompiledSchema, compile_schema, validate_compiled};
use serde_json::{Value, json};
use std::sync::OnceLock;

/// Most entries of a label selector, and of the values of one of its expressions.
pub const SELECTOR_ENTRIES_MAX: usize = 50;
/// Longest label key: a prefix of 253, a slash and a name of 63.
pub const LABEL_KEY_BYTES_MAX: usize = 317;
/// Most mistakes that one answer lists.
pub const MISTAKES_MAX: usize = 20;

/// The definitions of both kinds, as a cluster takes them.
#[must_use]
pub fn crds() -> [CustomResourceDefinition; 2] {
    let agent = adjusted(Agent::crd(), without_defaults);
    let halt = adjusted(Halt::crd(), |schema| {
        without_defaults(schema);
        bound_selector(&mut schema["properties"]["spec"]["properties"]["selector"]["properties"]);
    });
    [agent, halt]
}

/// The definition of one kind as the YAML that is checked in under `crds/`.
#[must_use]
pub fn crd_yaml(kind: Kind) -> String {
    let [agent, halt] = crds();
    let definition = match kind {
        Kind::Agent => agent,
        Kind::Halt => halt,
    };
    let yaml = serde_saphyr::to_string(&definition).expect("a definition is plain data");
    format!("# Printed by `mosaic crd`; do not edit.\n{yaml}")
}

/// Checks a whole object (`metadata` apart) against the schema and the CEL rules; with `old`, against the transition rules too.
/// # Errors
/// Every mistake as one sentence that names the field, at most [`MISTAKES_MAX`].
pub fn check(kind: Kind, object: &Value, old: Option<&Value>) -> Result<(), Vec<String>> {
    let compiled = compiled(kind);
    let pruned = |object: &Value| {
        let mut object = object.clone();
        prune(kind, &mut object);
        object
    };
    let object = pruned(object);
    let mistakes: Vec<String> = compiled.json.iter_errors(&object).take(MISTAKES_MAX).map(|e| sentences::of_schema(&e)).collect();
    if !mistakes.is_empty() {
        return Err(mistakes);
    }
    let old = old.map(pruned);
    let Err(errors) = validate_compiled(&compiled.rules, &object, old.as_ref()) else { return Ok(()) };
    Err(errors.iter().take(MISTAKES_MAX).map(sentences::of_rule).collect())
}

/// Checks the `status` of an object alone. No rule looks at a status, and its spec is not asked for.
/// # Errors
/// As [`check`].
pub fn check_status(kind: Kind, object: &Value) -> Result<(), Vec<String>> {
    let errors = compiled(kind).status.iter_errors(object);
    let mistakes: Vec<String> = errors.take(MISTAKES_MAX).map(|e| sentences::of_schema(&e)).collect();
    if mistakes.is_empty() { Ok(()) } else { Err(mistakes) }
}

/// Drops what the API server would drop: fields that the schema does not know, and nulls.
pub fn prune(kind: Kind, object: &mut Value) {
    prune_value(&compiled(kind).schema, object, true);
}

/// What one kind is checked with.
struct Compiled {
    schema: Value,
    json: jsonschema::Validator,
    /// Of an object that has a status and nothing else.
    status: jsonschema::Validator,
    rules: CompiledSchema,
}

fn compiled(kind: Kind) -> &'static Compiled {
    static COMPILED: OnceLock<[Compiled; 2]> = OnceLock::new();
    let [agent, halt] = COMPILED.get_or_init(|| crds().map(|definition| compile(&definition)));
    match kind {
        Kind::Agent => agent,
        Kind::Halt => halt,
    }
}

fn compile(definition: &CustomResourceDefinition) -> Compiled {
    let schema = open_api_schema(definition);
    // OpenAPI's numeric formats and `nullable` mean nothing to JSON Schema; nulls are pruned before it looks.
    let build = |schema| jsonschema::options().should_validate_formats(false).offline().build(schema).expect("our own schema compiles");
    let json = build(&schema);
    let status = build(&serde_json::json!({ "properties": { "status": schema["properties"]["status"] } }));
    let rules = compile_schema(&schema);
    Compiled { schema, json, status, rules }
}

/// The schema of the only version of a definition.
#[must_use]
pub fn open_api_schema(definition: &CustomResourceDefinition) -> Value {
    let version = definition.spec.versions.first().expect("a derived definition has one version");
    serde_json::to_value(version.schema.as_ref().and_then(|s| s.open_api_v3_schema.as_ref())).expect("a schema is plain data")
}

fn prune_value(schema: &Value, value: &mut Value, is_root: bool) {
    match value {
        Value::Object(map) => {
            map.retain(|_, v| !v.is_null());
            let Some(properties) = schema["properties"].as_object() else {
                map.values_mut().for_each(|v| prune_value(&schema["additionalProperties"], v, false));
                return;
            };
            map.retain(|name, _| properties.contains_key(name) || (is_root && ["apiVersion", "kind", "metadata"].contains(&name.as_str())));
            for (name, field) in map.iter_mut() {
                if let Some(inner) = properties.get(name) {
                    prune_value(inner, field, false);
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| prune_value(&schema["items"], item, false)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// A definition with another schema of its only version.
fn adjusted(definition: CustomResourceDefinition, adjust: impl FnOnce(&mut Value)) -> CustomResourceDefinition {
    let mut whole = serde_json::to_value(definition).expect("a definition is plain data");
    adjust(&mut whole["spec"]["versions"][0]["schema"]["openAPIV3Schema"]);
    serde_json::from_value(whole).expect("it is a definition still")
}

/// A default would be written into records by the API server, and by no other keeper. Whoever reads knows what absence means.
fn without_defaults(schema: &mut Value) {
    let Some(parts) = schema.as_object_mut() else { return };
    parts.remove("default");
    parts.get_mut("properties").and_then(Value::as_object_mut).into_iter().flatten().for_each(|(_, field)| without_defaults(field));
    for inner in ["items", "additionalProperties"] {
        if let Some(inner) = parts.get_mut(inner) {
            without_defaults(inner);
        }
    }
}

/// Kubernetes' own selector type has no limits; ours has, as every list and text of a spec.
fn bound_selector(selector: &mut Value) {
    selector["matchLabels"]["maxProperties"] = json!(SELECTOR_ENTRIES_MAX);
    selector["matchLabels"]["additionalProperties"]["maxLength"] = json!(63);
    selector["matchExpressions"]["maxItems"] = json!(SELECTOR_ENTRIES_MAX);
    let expression = &mut selector["matchExpressions"]["items"]["properties"];
    expression["key"]["maxLength"] = json!(LABEL_KEY_BYTES_MAX);
    expression["operator"]["enum"] = json!(["In", "NotIn", "Exists", "DoesNotExist"]);
    expression["operator"]["maxLength"] = json!("DoesNotExist".len());
    expression["values"]["maxItems"] = json!(SELECTOR_ENTRIES_MAX);
    expression["values"]["items"]["maxLength"] = json!(63);
}
