//! Defined gates and wanted names -> the set that must pass, in an order in which it may run, each with its digest.
//!
//! Relies on what the gates file's reader has checked: names are unique, needs are known, there is no circle.

use super::{GATES_FILE, Gate, GatesError, RESERVED};
use crate::api::agent::GateDefinition;
use crate::api::names::GateName;
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;

/// Takes every gate that provides a wanted name, and all that those need.
pub(super) fn select(source: &str, gates: &[Gate], wanted: &[GateName]) -> Result<Vec<GateDefinition>, GatesError> {
    let missing: Vec<&GateName> = wanted.iter().filter(|name| !gates.iter().any(|gate| gate.provides(name))).collect();
    if !missing.is_empty() {
        return Err(missing_gates(source, gates, &missing));
    }
    let mut taken: BTreeSet<&GateName> =
        gates.iter().filter(|gate| wanted.iter().any(|name| gate.provides(name))).map(|gate| &gate.name).collect();
    loop {
        let needed: Vec<&GateName> =
            gates.iter().filter(|gate| taken.contains(&gate.name)).flat_map(|gate| &gate.needs).filter(|n| !taken.contains(n)).collect();
        if needed.is_empty() {
            break;
        }
        taken.extend(needed);
    }
    let ordered = ordered(gates.iter().filter(|gate| taken.contains(&gate.name)).collect());
    if ordered.is_empty() {
        return Err(GatesError::missing("no gate would run; an empty set of gates never passes"));
    }
    Ok(ordered.into_iter().map(define).collect())
}

/// Each gate after those that it needs; among free ones the order of the file stays.
fn ordered(mut left: Vec<&Gate>) -> Vec<&Gate> {
    let mut done: Vec<&Gate> = Vec::new();
    while let Some(position) = left.iter().position(|gate| gate.needs.iter().all(|need| done.iter().any(|other| other.name == *need))) {
        done.push(left.remove(position));
    }
    debug_assert!(left.is_empty(), "needs are known and form no circle");
    done
}

fn define(gate: &Gate) -> GateDefinition {
    GateDefinition {
        name: gate.name.to_string(),
        command: gate.command.clone(),
        timeout_seconds: gate.timeout_seconds,
        needs: gate.needs.iter().map(ToString::to_string).collect(),
        digest: digest(gate),
    }
}

/// SHA-256 over name, command, timeout and needs, each behind its length, so that no two definitions have one encoding.
fn digest(gate: &Gate) -> String {
    let mut hash = Sha256::new();
    let mut field = |bytes: &[u8]| {
        hash.update((bytes.len() as u64).to_be_bytes());
        hash.update(bytes);
    };
    field(b"mosaic gate 1");
    field(gate.name.as_str().as_bytes());
    field(gate.command.as_bytes());
    field(&gate.timeout_seconds.to_be_bytes());
    field(&(gate.needs.len() as u64).to_be_bytes());
    for need in &gate.needs {
        field(need.as_str().as_bytes());
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn missing_gates(source: &str, gates: &[Gate], missing: &[&GateName]) -> GatesError {
    let names = |list: Vec<&str>| list.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    let wanted = names(missing.iter().map(|name| name.as_str()).collect());
    let existing = if gates.is_empty() {
        "it defines none".to_owned()
    } else {
        format!("it defines {}", names(gates.iter().map(|gate| gate.name.as_str()).collect()))
    };
    let first = missing.first().map_or("tests", |name| name.as_str());
    let provides = if RESERVED.contains(&first) {
        format!(", or `provides = [\"{first}\"]` to a gate that does it under another name")
    } else {
        String::new()
    };
    let add = if source == GATES_FILE {
        format!("to {GATES_FILE} on the trusted branch add")
    } else {
        format!("commit a {GATES_FILE} to the trusted branch that has all gates, with")
    };
    GatesError::missing(format!(
        "no gate provides {wanted} (source: {source}; {existing}); {add} a table [[gate]] with name = \"{first}\" and command = \"…\"{provides}"
    ))
}
