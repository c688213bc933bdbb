//! Durations and quantities: text -> number, with a sentence when it cannot be.
//!
//! Durations are written as in Go and Kubernetes (`90s`, `1h30m`, `250ms`) or as plain seconds (`90`); quantities as in Kubernetes
//! (`500m`, `2`, `512Mi`, `1G`). Sign, exponent and fractions of bytes are deliberately not taken: nothing here needs them.

use std::time::Duration;

/// Longest duration that a record may name: a year. What is longer is a mistake in the unit.
pub const DURATION_MAX: Duration = Duration::from_secs(366 * 24 * 3600);

/// Parses `90s`, `1h30m`, `250ms` or plain seconds.
/// # Errors
/// A sentence without the field's name; the caller puts it before.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let refuse = || format!("{text:?} is not a duration: write it as 90s, 30m, 1h30m, 250ms or plain seconds");
    let too_long = || format!("{text:?} is longer than a year, the maximum");
    if text.is_empty() || !text.is_ascii() {
        return Err(refuse());
    }
    let mut millis_total: u64 = 0;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, after) = rest.split_at(digits);
        let unit_len = after.bytes().take_while(u8::is_ascii_alphabetic).count();
        let (unit, next) = after.split_at(unit_len);
        let unit_millis: u64 = match unit {
            "h" => 3_600_000,
            "m" => 60_000,
            "s" => 1_000,
            "ms" => 1,
            "" if next.is_empty() && digits == text.len() => 1_000,
            _ => return Err(refuse()),
        };
        if number.is_empty() {
            return Err(refuse());
        }
        let number: u64 = number.parse().map_err(|_| too_long())?;
        let millis = number.checked_mul(unit_millis).ok_or_else(too_long)?;
        millis_total = millis_total.checked_add(millis).ok_or_else(too_long)?;
        rest = next;
    }
    let duration = Duration::from_millis(millis_total);
    if duration > DURATION_MAX { Err(too_long()) } else { Ok(duration) }
}

/// Parses `2`, `0.5` or `500m` into thousandths of a core.
/// # Errors
/// A sentence without the field's name.
pub fn parse_cpu_millis(text: &str) -> Result<u32, String> {
    let refuse = || format!("{text:?} is not an amount of CPU: write it as 2, 0.5 or 500m");
    let millis = match text.strip_suffix('m') {
        Some(millis) => digits(millis).ok_or_else(refuse)?,
        None => {
            let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
            if fraction.is_empty() || fraction.len() > 3 {
                return Err(refuse());
            }
            let whole = digits(whole).ok_or_else(refuse)?;
            let thousandths = digits(&format!("{fraction:0<3}")).ok_or_else(refuse)?;
            whole.checked_mul(1000).and_then(|w| w.checked_add(thousandths)).ok_or_else(refuse)?
        }
    };
    u32::try_from(millis).map_err(|_| refuse())
}

/// Parses `1073741824`, `512Mi`, `2Gi` or `1G` into bytes.
/// # Errors
/// A sentence without the field's name.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    const SUFFIXES: [(&str, u64); 8] = [
        ("Ki", 1 << 10),
        ("Mi", 1 << 20),
        ("Gi", 1 << 30),
        ("Ti", 1 << 40),
        ("k", 1_000),
        ("M", 1_000_000),
        ("G", 1_000_000_000),
        ("T", 1_000_000_000_000),
    ];
    let refuse = || format!("{text:?} is not an amount of bytes: write it as 512Mi, 2Gi, 1G or plain bytes");
    let (number, factor) =
        SUFFIXES.iter().find_map(|(suffix, factor)| text.strip_suffix(suffix).map(|n| (n, *factor))).unwrap_or((text, 1));
    digits(number).and_then(|n| n.checked_mul(factor)).ok_or_else(refuse)
}

/// Plain digits as a number; a sign or a space is no digit.
fn digits(text: &str) -> Option<u64> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}
