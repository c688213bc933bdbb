//! Records: the printed definitions, their limits and rules, and what a refused record is told.

use mosaic::api::agent::Driver;
use mosaic::api::schema::{check, crd_yaml, crds, open_api_schema, prune};
use mosaic::api::validate::{LIMITS_DEFAULT, ValidRuntime, parse_bytes, parse_cpu_millis, parse_duration, validate};
use mosaic::store::{Kind, Record};
use serde_json::{Value, json};
use std::path::Path;
use std::time::Duration;

/// Set to write the printed definitions instead of comparing them.
const UPDATE: &str = "UPDATE_CRDS";

#[test]
fn checked_in_definitions_equal_the_printed_ones() {
    for (kind, file) in [(Kind::Agent, "crds/agents.yaml"), (Kind::Halt, "crds/halts.yaml")] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
        let printed = crd_yaml(kind);
        if std::env::var_os(UPDATE).is_some() {
            std::fs::write(&path, &printed).unwrap();
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap(), printed, "{file} is stale: run the tests once with {UPDATE}=1");
        let parsed: Value = serde_saphyr::from_str(&printed).unwrap();
        let definition = &crds()[usize::from(kind == Kind::Halt)];
        assert_eq!(parsed, serde_json::to_value(definition).unwrap(), "{file} says what the types say");
    }
}

/// Calls `look(path, schema)` for a schema and everything below it.
fn walk(path: &str, schema: &Value, look: &mut dyn FnMut(&str, &Value)) {
    look(path, schema);
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        walk(&format!("{path}.{name}"), property, look);
    }
    if schema["items"].is_object() {
        walk(&format!("{path}[]"), &schema["items"], look);
    }
    if schema["additionalProperties"].is_object() {
        walk(&format!("{path}.*"), &schema["additionalProperties"], look);
    }
}

#[test]
fn every_field_has_a_description() {
    let mut bare = Vec::new();
    for definition in crds() {
        walk(&definition.spec.names.kind, &open_api_schema(&definition), &mut |path, schema| {
            let is_field = !path.ends_with("[]") && !path.ends_with(".*");
            if is_field && schema["description"].as_str().is_none_or(|d| d.trim().is_empty()) {
                bare.push(path.to_owned());
            }
        });
    }
    assert_eq!(bare, Vec::<String>::new());
}

#[test]
fn every_text_list_and_map_of_a_spec_has_a_limit() {
    let mut unlimited = Vec::new();
    for definition in crds() {
        let schema = open_api_schema(&definition);
        walk("spec", &schema["properties"]["spec"], &mut |path, schema| {
            let limited = match schema["type"].as_str() {
                Some("string") => schema["maxLength"].is_u64() || schema["enum"].is_array(),
                Some("array") => schema["maxItems"].is_u64(),
                Some("object") => schema["additionalProperties"].is_null() || schema["maxProperties"].is_u64(),
                _ => true,
            };
            if !limited {
                unlimited.push(path.to_owned());
            }
        });
    }
    assert_eq!(unlimited, Vec::<String>::new());
}

/// Kubernetes' rules for structural schemas, as far as a derived schema can break them.
#[test]
fn the_schemas_are_structural() {
    for definition in crds() {
        let schema = open_api_schema(&definition);
        walk(&definition.spec.names.kind, &schema, &mut |path, schema| {
            assert!(
                schema["type"].is_string() || schema["x-kubernetes-int-or-string"] == json!(true),
                "{path} has no single type: {schema}"
            );
            for word in ["$ref", "definitions", "oneOf", "anyOf", "allOf", "not", "const", "propertyNames", "patternProperties"] {
                assert!(schema.get(word).is_none(), "{path} has {word}");
            }
            assert!(schema["properties"].is_null() || schema["additionalProperties"].is_null(), "{path} mixes properties");
            assert_ne!(schema["additionalProperties"], json!(false), "{path}");
            assert!(schema["items"].is_null() || schema["items"].is_object(), "{path}");
            assert_ne!(schema["uniqueItems"], json!(true), "{path}");
        });
    }
}
