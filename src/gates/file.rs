//! `.mosaic/gates.toml` -> gates, or an error that names the line.
//!
//! The file is walked by hand rather than decoded into structs, so that each refusal can say where it stands and what is allowed there.
//! A key that is not known is an error: a misspelt `needs` that is passed over would be a gate that does not gate.

use super::{COMMAND_BYTES_MAX, GATES_FILE, GATES_MAX, Gate, GatesError, NOT_BUILT, TIMEOUT_SECONDS_DEFAULT, TIMEOUT_SECONDS_MAX};
use crate::api::names::GateName;
use toml::Spanned;
use toml::de::{DeInteger, DeTable, DeValue};

/// Keys of the file that are planned and not built, with what they would do.
const KEYS_NOT_BUILT: [(&str, &str); 4] = [
    ("prepare", "fetching dependencies before the gates"),
    ("coverage", "the coverage gate"),
    ("review", "the AI review"),
    ("provenance", "the 50 % rule"),
];
/// Keys of one `[[gate]]`.
const KEYS_OF_GATE: &str = "name, command, timeout, needs, provides";

/// Most globs in `protect`, and the longest of them in bytes.
const PROTECT_MAX: (usize, usize) = (64, 256);

/// What a gates file says.
pub(super) struct GatesFile {
    /// All gates, in the order of the file.
    pub(super) gates: Vec<Gate>,
    /// Globs of paths that an agent may not change, as in `.gitignore`.
    pub(super) protect: Vec<String>,
}

/// A part of the file that knows its line.
#[derive(Clone, Copy)]
struct Place<'a> {
    text: &'a str,
}

impl Place<'_> {
    fn line<T>(self, part: &Spanned<T>) -> usize {
        line_of(self.text, part.span().start)
    }

    fn invalid<T>(self, part: &Spanned<T>, what: impl std::fmt::Display) -> GatesError {
        GatesError::invalid(format!("{GATES_FILE} line {}: {what}", self.line(part)))
    }

    fn not_supported<T>(self, part: &Spanned<T>, what: impl std::fmt::Display) -> GatesError {
        GatesError::not_supported(format!("{GATES_FILE} line {}: {what}", self.line(part)))
    }
}

fn line_of(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1
}

/// Reads the whole file. Needs and cycles are checked over all gates, also those that nobody asks for: a wrong file is wrong as a whole.
pub(super) fn parse(bytes: &[u8]) -> Result<GatesFile, GatesError> {
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let line = bytes.iter().take(error.valid_up_to()).filter(|byte| **byte == b'\n').count() + 1;
        GatesError::invalid(format!("{GATES_FILE} line {line}: is not UTF-8"))
    })?;
    let place = Place { text };
    let table = DeTable::parse(text).map_err(|error| {
        let line = line_of(text, error.span().map_or(0, |span| span.start));
        GatesError::invalid(format!("{GATES_FILE} line {line}: {}", error.message().trim()))
    })?;
    let mut gates: Vec<(Gate, usize)> = Vec::new();
    let mut protect = Vec::new();
    for (key, value) in table.get_ref() {
        match key.get_ref().as_ref() {
            "gate" => gates = parse_gates(place, value)?,
            "protect" => protect = parse_protect(place, value)?,
            other => return Err(refuse_key(place, key, other)),
        }
    }
    check_names(&gates)?;
    check_cycles(&gates)?;
    Ok(GatesFile { gates: gates.into_iter().map(|(gate, _)| gate).collect(), protect })
}

fn parse_protect(place: Place<'_>, value: &Spanned<DeValue<'_>>) -> Result<Vec<String>, GatesError> {
    let (count_max, bytes_max) = PROTECT_MAX;
    let Some(items) = value.get_ref().as_array().filter(|items| items.len() <= count_max) else {
        return Err(place.invalid(value, format!("`protect` must be a list of at most {count_max} globs, such as protect = [\"ci/**\"]")));
    };
    let mut globs = Vec::new();
    for item in items {
        let glob = text_of(place, item, "protect")?;
        let valid = ignore::gitignore::GitignoreBuilder::new("").add_line(None, glob).is_ok();
        // `!` and `#` would take protection away without anybody noticing.
        if !valid || glob.trim().is_empty() || glob.len() > bytes_max || glob.starts_with(['!', '#']) {
            return Err(place.invalid(item, format!("`protect` has {:?}, which is no glob of 1 to {bytes_max} bytes", shorten(glob))));
        }
        globs.push(glob.to_owned());
    }
    Ok(globs)
}

fn refuse_key<T>(place: Place<'_>, part: &Spanned<T>, key: &str) -> GatesError {
    match KEYS_NOT_BUILT.iter().find(|(name, _)| *name == key) {
        Some((_, what)) => {
            place.not_supported(part, format!("`{key}` ({what}) is not enforced by this version; take it out rather than rely on it"))
        }
        None => place
            .invalid(part, format!("unknown key `{}`; the file consists of [[gate]] tables ({KEYS_OF_GATE}) and `protect`", shorten(key))),
    }
}

fn parse_gates(place: Place<'_>, value: &Spanned<DeValue<'_>>) -> Result<Vec<(Gate, usize)>, GatesError> {
    let Some(tables) = value.get_ref().as_array() else {
        return Err(place.invalid(value, "`gate` must be written as [[gate]] tables, with two brackets on each side"));
    };
    if tables.len() > GATES_MAX {
        return Err(place.invalid(value, format!("{} gates, more than the {GATES_MAX} that a file may have", tables.len())));
    }
    tables.iter().map(|item| Ok((parse_gate(place, item)?, place.line(item)))).collect()
}

fn parse_gate(place: Place<'_>, item: &Spanned<DeValue<'_>>) -> Result<Gate, GatesError> {
    let Some(table) = item.get_ref().as_table() else {
        return Err(place.invalid(item, format!("a gate is a table with {KEYS_OF_GATE}")));
    };
    let (mut name, mut command) = (None, None);
    let (mut timeout_seconds, mut needs, mut provides) = (TIMEOUT_SECONDS_DEFAULT, Vec::new(), Vec::new());
    for (key, value) in table {
        match key.get_ref().as_ref() {
            "name" => name = Some(parse_name(place, value, "name")?),
            "command" => command = Some(parse_command(place, value)?),
            "timeout" => timeout_seconds = parse_timeout(place, value)?,
            "needs" => needs = parse_names(place, value, "needs")?,
            "provides" => provides = parse_names(place, value, "provides")?,
            other => return Err(refuse_key_of_gate(place, key, other)),
        }
    }
    let name = name.ok_or_else(|| place.invalid(item, "this gate has no `name`"))?;
    let command = command.ok_or_else(|| place.invalid(item, format!("gate `{name}` has no `command`")))?;
    if name.as_str() == super::tamper::TAMPER {
        return Err(place.invalid(item, "the name `tamper` is that of a verdict of its own; choose another"));
    }
    if let Some(not_built) = std::iter::once(&name).chain(&provides).find(|n| NOT_BUILT.contains(&n.as_str())) {
        return Err(place.not_supported(
            item,
            format!("gate `{name}` would provide `{not_built}`, which this version cannot judge; give a check of your own another name"),
        ));
    }
    Ok(Gate { name, command, timeout_seconds, needs, provides })
}

fn refuse_key_of_gate<T>(place: Place<'_>, part: &Spanned<T>, key: &str) -> GatesError {
    if KEYS_NOT_BUILT.iter().any(|(name, _)| *name == key) {
        return refuse_key(place, part, key);
    }
    place.invalid(part, format!("unknown key `{}` of a gate; it has {KEYS_OF_GATE}", shorten(key)))
}

fn text_of<'v>(place: Place<'_>, value: &'v Spanned<DeValue<'_>>, key: &str) -> Result<&'v str, GatesError> {
    value.get_ref().as_str().ok_or_else(|| place.invalid(value, format!("`{key}` must be text in quotes")))
}

fn parse_name(place: Place<'_>, value: &Spanned<DeValue<'_>>, key: &str) -> Result<GateName, GatesError> {
    GateName::new(text_of(place, value, key)?).map_err(|error| place.invalid(value, error))
}

/// Sorted and without doubles: the order in a list means nothing, so it must not change a digest either.
fn parse_names(place: Place<'_>, value: &Spanned<DeValue<'_>>, key: &str) -> Result<Vec<GateName>, GatesError> {
    let Some(items) = value.get_ref().as_array() else {
        return Err(place.invalid(value, format!("`{key}` must be a list of gate names, such as {key} = [\"build\"]")));
    };
    let mut names = items.iter().map(|item| parse_name(place, item, key)).collect::<Result<Vec<_>, _>>()?;
    names.sort();
    names.dedup();
    Ok(names)
}

fn parse_command(place: Place<'_>, value: &Spanned<DeValue<'_>>) -> Result<String, GatesError> {
    let command = text_of(place, value, "command")?;
    if command.trim().is_empty() {
        return Err(place.invalid(value, "`command` is empty; a gate that runs nothing would pass everything"));
    }
    if command.len() > COMMAND_BYTES_MAX {
        return Err(place.invalid(value, format!("`command` has more than {COMMAND_BYTES_MAX} bytes; put it into a script")));
    }
    if command.contains('\0') {
        return Err(place.invalid(value, "`command` contains a NUL character, which no program can be given"));
    }
    Ok(command.to_owned())
}

fn parse_timeout(place: Place<'_>, value: &Spanned<DeValue<'_>>) -> Result<u32, GatesError> {
    let seconds = match value.get_ref() {
        DeValue::String(text) => seconds_of_text(text),
        DeValue::Integer(number) => seconds_of_integer(number),
        _ => None,
    };
    match seconds {
        Some(seconds @ 1..) if seconds <= u64::from(TIMEOUT_SECONDS_MAX) => Ok(u32::try_from(seconds).unwrap_or(TIMEOUT_SECONDS_MAX)),
        Some(seconds @ 1..) => {
            Err(place.invalid(value, format!("`timeout` of {seconds} seconds is more than the {TIMEOUT_SECONDS_MAX} that a gate may take")))
        }
        _ => Err(place.invalid(value, "`timeout` must be like \"90s\", \"10m\" or \"1h30m\", or whole seconds, at least 1")),
    }
}

fn seconds_of_integer(number: &DeInteger<'_>) -> Option<u64> {
    u64::from_str_radix(number.as_str(), number.radix()).ok()
}

/// `90s`, `10m`, `1h30m`, or plain seconds. Finer units have no use here.
fn seconds_of_text(text: &str) -> Option<u64> {
    if let Ok(seconds) = text.parse::<u64>() {
        return Some(seconds);
    }
    let mut total: u64 = 0;
    for part in text.split_inclusive(['h', 'm', 's']) {
        let (number, unit) = part.split_at_checked(part.len().checked_sub(1)?)?;
        let factor = match unit {
            "h" => 3600,
            "m" => 60,
            "s" => 1,
            _ => return None,
        };
        if !number.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        total = total.checked_add(number.parse::<u64>().ok()?.checked_mul(factor)?)?;
    }
    Some(total)
}

fn check_names(gates: &[(Gate, usize)]) -> Result<(), GatesError> {
    for (index, (gate, line)) in gates.iter().enumerate() {
        if let Some((_, first)) = gates.iter().take(index).find(|(other, _)| other.name == gate.name) {
            return Err(GatesError::invalid(format!(
                "{GATES_FILE} line {line}: gate `{}` is defined twice, first on line {first}",
                gate.name
            )));
        }
        if let Some(unknown) = gate.needs.iter().find(|need| !gates.iter().any(|(other, _)| other.name == **need)) {
            let names: Vec<&str> = gates.iter().map(|(other, _)| other.name.as_str()).collect();
            return Err(GatesError::invalid(format!(
                "{GATES_FILE} line {line}: gate `{}` needs `{unknown}`, which is no gate of this file; there are: {}",
                gate.name,
                names.join(", ")
            )));
        }
    }
    Ok(())
}

/// Takes away gates whose needs are all taken away, again and again; what remains stands on or behind a circle.
fn check_cycles(gates: &[(Gate, usize)]) -> Result<(), GatesError> {
    let mut left: Vec<&(Gate, usize)> = gates.iter().collect();
    loop {
        let (stuck, free): (Vec<_>, Vec<_>) =
            left.iter().partition(|(gate, _)| gate.needs.iter().any(|need| left.iter().any(|(other, _)| other.name == *need)));
        if free.is_empty() {
            break;
        }
        left = stuck;
    }
    let Some((first, line)) = left.first() else { return Ok(()) };
    let path = walk_circle(&left, &first.name);
    Err(GatesError::invalid(format!("{GATES_FILE} line {line}: gates need each other in a circle: {}", path.join(" -> "))))
}

/// Follows needs from `start` until a name comes again; that part is the circle. Every gate in `left` needs another one of `left`.
fn walk_circle(left: &[&(Gate, usize)], start: &GateName) -> Vec<String> {
    let mut path: Vec<&GateName> = vec![start];
    while path.len() <= left.len() {
        let here = path[path.len() - 1];
        let next = left
            .iter()
            .filter(|(gate, _)| gate.name == *here)
            .flat_map(|(gate, _)| &gate.needs)
            .find(|need| left.iter().any(|(other, _)| other.name == **need));
        let Some(next) = next else { break };
        if let Some(position) = path.iter().position(|name| *name == next) {
            path.drain(..position);
            path.push(next);
            break;
        }
        path.push(next);
    }
    path.into_iter().map(ToString::to_string).collect()
}

fn shorten(text: &str) -> String {
    text.chars().take(40).collect()
}
