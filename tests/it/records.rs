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
        let checked_in = std::fs::read_to_string(&path).unwrap();
        let differing = printed.lines().zip(checked_in.lines()).find(|(printed, checked_in)| printed != checked_in);
        assert!(checked_in == printed, "{file} is stale at {differing:?}: run the tests once with {UPDATE}=1");
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

fn spec() -> Value {
    json!({
        "context": { "repository": "file:///srv/git/sample.git" },
        "runtime": { "command": { "args": ["true"], "env": { "A": "1" } } },
    })
}

fn mistakes(spec: &Value) -> Vec<String> {
    check(Kind::Agent, &json!({ "spec": spec }), None).unwrap_err()
}

#[test]
fn every_refusal_names_the_field_and_what_it_must_be() {
    let with = |field: &str, value: Value| {
        let mut spec = spec();
        spec[field] = value;
        mistakes(&spec)
    };
    let cases = [
        (with("priority", json!(11)), "spec.priority: 11 is greater than the maximum of 10"),
        (with("priority", json!(0)), "spec.priority: 0 is less than the minimum of 1"),
        (with("priority", json!("high")), "spec.priority: must be of type integer, not \"high\""),
        (with("agentType", json!("boss")), "spec.agentType: \"boss\" is none of worker, reviewer, tester"),
        (with("timeout", json!("soon")), "spec.timeout: \"soon\" is not a duration: write it as 90s, 30m, 1h30m, 250ms or plain seconds"),
        (with("taskId", json!("x".repeat(201))), "spec.taskId: is longer than the maximum of 200 characters"),
        (with("taskId", json!("")), "spec.taskId: is shorter than the minimum of 1 characters"),
        (with("dependsOn", json!(vec!["a"; 51])), "spec.dependsOn: has more than the maximum of 50 items"),
        (with("dependsOn", json!([""])), "spec.dependsOn[0]: is shorter than the minimum of 1 characters"),
        (with("context", json!({})), "spec.context.repository: is required"),
        (with("runtime", json!({})), "spec.runtime needs exactly one of claude, preset and command"),
        (
            with("runtime", json!({ "preset": "codex", "command": { "args": ["x"] } })),
            "spec.runtime needs exactly one of claude, preset and command",
        ),
        (with("runtime", json!({ "command": { "args": [] } })), "spec.runtime.command.args: has fewer than the minimum of 1 items"),
        (
            with("runtime", json!({ "command": { "args": ["x"], "env": { "A": 1 } } })),
            "spec.runtime.command.env.A: must be of type string, not 1",
        ),
    ];
    for (found, expected) in cases {
        assert_eq!(found, [expected]);
    }
    assert_eq!(check(Kind::Agent, &json!({}), None).unwrap_err(), ["spec: is required"]);
    assert_eq!(check(Kind::Agent, &json!({ "spec": spec() }), None), Ok(()));
}

#[test]
fn halts_are_checked_too() {
    let halt = |spec: Value| check(Kind::Halt, &json!({ "spec": spec }), None);
    assert_eq!(halt(json!({})), Ok(()));
    assert_eq!(halt(json!({ "selector": { "matchLabels": { "team": "a" } }, "release": "manual" })), Ok(()));
    assert_eq!(halt(json!({ "release": "never" })).unwrap_err(), ["spec.release: \"never\" is none of whenDone, manual"]);
    let odd = json!({ "selector": { "matchExpressions": [{ "key": "team", "operator": "Near" }] } });
    assert_eq!(halt(odd).unwrap_err(), ["spec.selector.matchExpressions[0].operator: \"Near\" is none of In, NotIn, Exists, DoesNotExist"]);
}

/// Every field of the spec, with a value and another one; optional fields are also added and removed.
#[test]
fn only_priority_and_suspend_can_change_in_any_way() {
    let optional = [
        ("taskId", json!("T-1"), json!("T-2")),
        ("agentType", json!("worker"), json!("tester")),
        ("sandbox", json!({ "cpu": "1" }), json!({ "cpu": "2" })),
        ("gates", json!({ "profile": "minimal" }), json!({ "profile": "standard" })),
        ("timeout", json!("1h"), json!("2h")),
        ("idleTimeout", json!("1m"), json!("2m")),
        ("maxRetries", json!(1), json!(2)),
        ("backoff", json!({ "initial": "1s" }), json!({ "max": "1s" })),
        ("budget", json!({ "maxTokens": 1 }), json!({ "maxTokens": 2 })),
        ("dependsOn", json!(["a"]), json!(["b"])),
        ("ttlAfterFinished", json!("1h"), json!("2h")),
        ("rerunOf", json!("12345678"), json!("87654321")),
        ("priority", json!(1), json!(2)),
        ("suspend", json!(true), json!(false)),
    ];
    let known = open_api_schema(&crds()[0]);
    let fields = known["properties"]["spec"]["properties"].as_object().unwrap().len();
    assert_eq!(fields, optional.len() + 2, "every field but context and runtime is in the list above");
    let update = |old: &Value, new: &Value| check(Kind::Agent, &json!({ "spec": new }), Some(&json!({ "spec": old })));
    for (field, one, other) in optional {
        let may_change = ["priority", "suspend"].contains(&field);
        let with = |value: &Value| {
            let mut spec = spec();
            spec[field] = value.clone();
            spec
        };
        for (old, new) in [(with(&one), with(&other)), (with(&one), spec()), (spec(), with(&one))] {
            let result = update(&old, &new);
            assert_eq!(result.is_ok(), may_change, "{field}: {old} -> {new}: {result:?}");
        }
        assert_eq!(update(&with(&one), &with(&one)), Ok(()), "{field} unchanged");
        assert_eq!(update(&with(&Value::Null), &spec()), Ok(()), "{field}: null is absent");
    }
    for inner in [json!({ "repository": "file:///other.git" }), json!({ "repository": "file:///srv/git/sample.git", "branch": "b" })] {
        let mut new = spec();
        new["context"] = inner;
        assert!(update(&spec(), &new).is_err());
        assert!(update(&new, &spec()).is_err());
    }
    let mut env = spec();
    env["runtime"]["command"]["env"] = json!({ "A": "2" });
    assert_eq!(
        update(&spec(), &env).unwrap_err(),
        ["only spec.priority and spec.suspend can be changed; to run with another spec, delete this Agent and create a new one"]
    );
}

#[test]
fn unknown_fields_are_pruned_and_free_keys_are_kept() {
    let mut object = json!({
        "apiVersion": "mosaicstack.dev/v1alpha1", "kind": "Agent", "metadata": { "name": "x", "labels": { "a": "b" } }, "extra": 1,
        "spec": { "shoeSize": 44, "timeout": null, "runtime": { "command": { "args": ["x"], "env": { "ANY": "kept" }, "shell": true } } },
        "status": { "conditions": [{ "type": "Pushed", "colour": "red" }] },
    });
    prune(Kind::Agent, &mut object);
    assert_eq!(
        object,
        json!({
            "apiVersion": "mosaicstack.dev/v1alpha1", "kind": "Agent", "metadata": { "name": "x", "labels": { "a": "b" } },
            "spec": { "runtime": { "command": { "args": ["x"], "env": { "ANY": "kept" } } } },
            "status": { "conditions": [{ "type": "Pushed" }] },
        })
    );
}

fn stored(spec: Value) -> Record {
    let metadata = json!({
        "name": "fix-tests", "namespace": "team-a", "uid": "0f3c2a1b-0000-4000-8000-000000000000", "generation": 3,
        "creationTimestamp": "2026-01-02T03:04:05Z", "finalizers": ["mosaicstack.dev/cleanup"],
    });
    Record { kind: Kind::Agent, metadata: serde_json::from_value(metadata).unwrap(), spec, status: Value::Null }
}

#[test]
fn what_is_absent_has_the_documented_default() {
    let agent = validate(&stored(spec())).unwrap();
    assert_eq!((agent.priority, agent.retries_max), (5, 3));
    assert_eq!((agent.timeout, agent.idle_timeout), (Duration::from_secs(3600), Duration::from_secs(600)));
    assert_eq!((agent.backoff_initial, agent.backoff_max), (Duration::from_secs(10), Duration::from_secs(300)));
    assert_eq!(agent.limits, LIMITS_DEFAULT);
    assert_eq!((LIMITS_DEFAULT.cpu_millis, LIMITS_DEFAULT.memory_bytes), (2000, 2 << 30));
    assert_eq!((LIMITS_DEFAULT.pids_max, LIMITS_DEFAULT.disk_bytes), (512, 10 << 30));
    assert_eq!(agent.target_branch.as_str(), "mosaic/fix-tests-0f3c2a1b");
    assert_eq!((agent.task_id.as_str(), agent.branch), ("fix-tests", None));
    assert_eq!((agent.driver, agent.generation, agent.has_finalizer), (Driver::Auto, 3, true));
    assert_eq!(agent.created_at.to_string(), "2026-01-02T03:04:05Z");
    assert_eq!(agent.ttl_after_finished, None);
    assert!(agent.not_built.is_empty());
    let ValidRuntime::Command { args, env } = agent.runtime else { panic!("a command was asked for") };
    assert_eq!((args, env), (vec!["true".to_owned()], [("A".to_owned(), "1".to_owned())].into()));
}

#[test]
fn every_mistake_is_listed_with_its_field() {
    let mut wrong = spec();
    wrong["timeout"] = json!("0");
    wrong["idleTimeout"] = json!("9999h");
    wrong["priority"] = json!(99);
    wrong["sandbox"] = json!({ "cpu": "lots", "memory": "1Ki", "pids": 0 });
    wrong["gates"] = json!({ "required": ["Bad Gate"] });
    wrong["dependsOn"] = json!(["fix-tests", "-x"]);
    wrong["backoff"] = json!({ "initial": "10m", "max": "1m" });
    wrong["context"] = json!({ "repository": "--upload-pack=evil", "branch": "a..b", "targetBranch": "-f" });
    wrong["runtime"] = json!({ "command": { "args": [""], "env": { "A=B": "x" } } });
    let found = validate(&stored(wrong)).unwrap_err();
    for field in [
        "spec.timeout: must be longer than 0",
        "spec.idleTimeout: \"9999h\" is longer than a year",
        "spec.priority: 99 is not between 1 and 10",
        "spec.sandbox.cpu: \"lots\" is not an amount of CPU",
        "spec.sandbox.memory: must be at least 16Mi",
        "spec.sandbox.pids: 0 is not between",
        "spec.gates.required: invalid gate name",
        "spec.dependsOn: invalid agent name",
        "spec.dependsOn: fix-tests cannot depend on itself",
        "spec.backoff.max: must not be shorter",
        "spec.context.repository: write an absolute path",
        "spec.context.branch: invalid branch",
        "spec.context.targetBranch: invalid branch",
        "spec.runtime.command.args: must name a program",
        "spec.runtime.command.env: \"A=B\"",
    ] {
        assert!(found.iter().any(|sentence| sentence.starts_with(field)), "{field}\nin {found:#?}");
    }
    assert_eq!(found.len(), 15, "{found:#?}");
}

#[test]
fn what_is_not_built_says_so_by_name() {
    let mut far = spec();
    far["sandbox"] = json!({ "egress": ["example.org"] });
    far["budget"] = json!({ "maxTokens": 1 });
    let agent = validate(&stored(far)).unwrap();
    let said = |field: &str| agent.not_built.iter().any(|s| s.starts_with(field) && s.contains("is not built yet: "));
    for field in ["spec.sandbox.egress", "spec.budget"] {
        assert!(said(field), "{field} in {:?}", agent.not_built);
    }
    let mut process = spec();
    process["sandbox"] = json!({ "driver": "process", "image": "x", "runtimeClass": "gvisor" });
    let agent = validate(&stored(process.clone())).unwrap();
    for field in ["spec.sandbox.image with driver process", "spec.sandbox.runtimeClass with driver process"] {
        assert!(agent.not_built.iter().any(|s| s.starts_with(field)), "{field} in {:?}", agent.not_built);
    }
    for driver in ["docker", "pod", "auto"] {
        process["sandbox"]["driver"] = json!(driver);
        assert_eq!(validate(&stored(process.clone())).unwrap().not_built, Vec::<String>::new(), "{driver}");
    }
    for (runtime, name) in [(json!({ "claude": {} }), "claude"), (json!({ "preset": "claude-code" }), "claude-code")] {
        let mut other = spec();
        other["runtime"] = runtime;
        let ValidRuntime::NotBuilt(text) = validate(&stored(other)).unwrap().runtime else { panic!("{name} is not built") };
        assert!(text.contains(name) && text.contains("is not built yet"), "{text}");
    }
}

#[test]
fn a_broken_status_does_not_blind_the_agent() {
    let mut record = stored(spec());
    record.status = json!({ "attempt": "many" });
    assert_eq!(validate(&record).unwrap().status.attempt, 0);
    record.status = json!({ "attempt": 4, "fieldOfALaterVersion": 1 });
    assert_eq!(validate(&record).unwrap().status.attempt, 4);
    record.spec = json!({ "context": 5 });
    assert!(validate(&record).unwrap_err()[0].starts_with("spec: "));
}

#[test]
fn durations_and_quantities_are_read_as_written() {
    for (text, millis) in [("90s", 90_000), ("90", 90_000), ("1h30m", 5_400_000), ("250ms", 250), ("1m1s1ms", 61_001), ("0", 0)] {
        assert_eq!(parse_duration(text), Ok(Duration::from_millis(millis)), "{text}");
    }
    for text in ["", "s", "1", "-1s", "1.5h", "1d", "1h30", "1 h", "٣s", "99999999999999999999s", "9000000h", "5ms5"] {
        assert_eq!(parse_duration(text).is_ok(), text == "1", "{text}");
    }
    for (text, cpu) in [("2", Some(2000)), ("500m", Some(500)), ("0.5", Some(500)), ("1.25", Some(1250)), (".5", None), ("1.2345", None)] {
        assert_eq!(parse_cpu_millis(text).ok(), cpu, "{text}");
    }
    for text in ["", "m", "-1", "1e3", "2.", "99999999999", "1 m"] {
        assert!(parse_cpu_millis(text).is_err(), "{text}");
    }
    for (text, bytes) in [("512Mi", 512 << 20), ("2Gi", 2 << 30), ("1G", 1_000_000_000), ("1k", 1000), ("4096", 4096)] {
        assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
    }
    for text in ["", "Mi", "-1", "1.5Gi", "1g", "1GiB", "99999999999Ti"] {
        assert!(parse_bytes(text).is_err(), "{text}");
    }
}

/// What admission accepts, validation of the fields that the schema bounds accepts too, for every duration that the pattern lets through.
#[test]
fn schema_and_parser_agree_on_the_form_of_durations() {
    for text in ["1h", "90", "1h30m", "1ms", "h", "1x", "1h 30m", "", "1h30", "30m1h"] {
        let mut spec = spec();
        spec["timeout"] = json!(text);
        let by_schema = check(Kind::Agent, &json!({ "spec": spec }), None).is_ok();
        assert_eq!(by_schema, parse_duration(text).is_ok(), "{text:?}");
    }
}

#[test]
fn rules_are_cheap_enough_for_a_cluster() {
    use kube::core::cel::{compile_schema, estimate_rule_cost};
    for definition in crds() {
        let schema = open_api_schema(&definition);
        walk("", &schema, &mut |path, schema| {
            for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
                let warnings = estimate_rule_cost(rule["rule"].as_str().unwrap(), &compile_schema(schema));
                assert!(warnings.is_empty(), "{path}: {warnings:?}");
            }
        });
    }
}
