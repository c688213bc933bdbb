//! What a validator found -> a sentence that names the field and says what it must be.

use jsonschema::ValidationError;
use jsonschema::error::{TypeKind, ValidationErrorKind};
use kube::core::cel::ValidationError as RuleError;
use serde_json::Value;

/// Longest part of a refused value that a sentence repeats, in characters.
const VALUE_CHARS_MAX: usize = 80;

/// A mistake against the JSON schema.
pub(super) fn of_schema(error: &ValidationError<'_>) -> String {
    let field = field(error.instance_path().as_str());
    let value = shown(error.instance());
    match error.kind() {
        ValidationErrorKind::Required { property } => {
            let name = property.as_str().unwrap_or_default();
            if field.is_empty() { format!("{name}: is required") } else { format!("{field}.{name}: is required") }
        }
        ValidationErrorKind::Type { kind: TypeKind::Single(expected) } => format!("{field}: must be of type {expected}, not {value}"),
        ValidationErrorKind::Maximum { limit } => format!("{field}: {value} is greater than the maximum of {}", number(limit)),
        ValidationErrorKind::Minimum { limit } => format!("{field}: {value} is less than the minimum of {}", number(limit)),
        ValidationErrorKind::MaxLength { limit } => format!("{field}: is longer than the maximum of {limit} characters"),
        ValidationErrorKind::MinLength { limit } => format!("{field}: is shorter than the minimum of {limit} characters"),
        ValidationErrorKind::MaxItems { limit } => format!("{field}: has more than the maximum of {limit} items"),
        ValidationErrorKind::MinItems { limit } => format!("{field}: has fewer than the minimum of {limit} items"),
        ValidationErrorKind::MaxProperties { limit } => format!("{field}: has more than the maximum of {limit} entries"),
        ValidationErrorKind::Enum { options } => format!("{field}: {value} is none of {}", words(options)),
        ValidationErrorKind::Pattern { pattern } if pattern.contains("h|m|s|ms") => {
            format!("{field}: {value} is not a duration: write it as 90s, 30m, 1h30m, 250ms or plain seconds")
        }
        ValidationErrorKind::Pattern { pattern } if pattern.contains(r"\P{C}") => {
            format!("{field}: {value} holds what cannot be seen (a control or direction mark): use visible characters on one line")
        }
        ValidationErrorKind::Pattern { pattern } if pattern.contains(r"\x00") => {
            format!("{field}: holds NUL, which no text has: take it out")
        }
        ValidationErrorKind::Pattern { pattern } if pattern.contains("@+") => {
            format!("{field}: {value} is no image: write it as registry/name:tag or name@sha256:digest, without spaces")
        }
        ValidationErrorKind::Pattern { pattern } => format!("{field}: {value} does not match {pattern}"),
        _ => format!("{field}: {error}"),
    }
}

/// A CEL rule that did not hold. Our messages name the field from the root themselves.
pub(super) fn of_rule(error: &RuleError) -> String {
    let path = error.field_path.as_str();
    if path.is_empty() || error.message.contains("spec.") { error.message.clone() } else { format!("{path}: {}", error.message) }
}

/// `/spec/runtime/args/0` -> `spec.runtime.args[0]`.
fn field(pointer: &str) -> String {
    let mut out = String::new();
    for part in pointer.split('/').skip(1) {
        let part = part.replace("~1", "/").replace("~0", "~");
        if !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()) {
            out.push_str(&format!("[{part}]"));
        } else {
            if !out.is_empty() {
                out.push('.');
            }
            out.push_str(&part);
        }
    }
    out
}

fn shown(value: &Value) -> String {
    // What cannot be seen is spelt out: a mark of direction would turn the sentence around.
    let visible = |c: char| if c.is_ascii() { c.to_string() } else { c.escape_debug().to_string() };
    let text: String = value.to_string().chars().map(visible).collect();
    if text.chars().count() <= VALUE_CHARS_MAX {
        return text;
    }
    format!("{}…", text.chars().take(VALUE_CHARS_MAX).collect::<String>())
}

/// Definitions hold limits as floating-point numbers; people read whole ones.
fn number(limit: &Value) -> String {
    limit.as_f64().map_or_else(|| limit.to_string(), |limit| limit.to_string())
}

fn words(options: &Value) -> String {
    let words = options.as_array().into_iter().flatten().filter_map(Value::as_str);
    words.collect::<Vec<_>>().join(", ")
}
