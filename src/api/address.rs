//! The text that names a repository: which kinds of address there are, and the one spelling of each.
//!
//! Credentials in an address are refused: they would end up in status, logs and audit. Host, user, port and path of a network address
//! go on to programs and to the operator's prefixes, so there is one spelling of each, and nothing in it that any of them could read as
//! something else. Whether a path may be used is not judged here; that takes the operator's settings and the disk.

/// A repository's address, as far as its text tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// Absolute path on the controller's machine, decoded.
    Path(String),
    /// Address over the network.
    Network {
        /// `https` or `ssh`.
        protocol: &'static str,
        /// Its one spelling.
        url: String,
    },
}

impl Address {
    /// Reads an address.
    /// # Errors
    /// What is wrong with it and what to write instead, without the address: it may hold a password.
    pub fn read(given: &str) -> Result<Self, String> {
        if given.is_empty() || given.starts_with('-') || given.chars().any(char::is_control) {
            return Err("write an absolute path, file://, https:// or ssh://, without control characters".to_owned());
        }
        if let Some(rest) = given.strip_prefix("file://") {
            let path = rest.strip_prefix("localhost").unwrap_or(rest);
            if !path.starts_with('/') {
                return Err("write file:// with an absolute path, as file:///home/me/project".to_owned());
            }
            return decode(path).map(Self::Path);
        }
        if given.starts_with('/') {
            return Ok(Self::Path(given.to_owned()));
        }
        match given.split_once("://") {
            Some(("https" | "ssh", _)) => Ok(canonical(given).map(|(protocol, url)| Self::Network { protocol, url })?),
            Some(("http", _)) => Err("http:// is neither private nor authentic; write https://".to_owned()),
            Some(_) => Err("this kind of address is not supported; write https://, ssh://, file:// or an absolute path".to_owned()),
            None if given.contains("::") => {
                Err("remote helpers are not supported; write https://, ssh://, file:// or an absolute path".to_owned())
            }
            None if given.contains(':') => Err("write ssh://user@host/path instead of user@host:path".to_owned()),
            None => Err("a relative path depends on who reads it; write an absolute path".to_owned()),
        }
    }
}

/// `%20` and the like in a `file://` address.
fn decode(path: &str) -> Result<String, String> {
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digits: String = rest.by_ref().take(2).map(char::from).collect();
        match u8::from_str_radix(&digits, 16) {
            Ok(value) if digits.len() == 2 && value >= b' ' => bytes.push(value),
            Ok(_) | Err(_) => return Err("a % in a file:// address must be followed by two hexadecimal digits".to_owned()),
        }
    }
    String::from_utf8(bytes).map_err(|_| "the path is not UTF-8".to_owned())
}

/// The protocol and the one spelling of an `https://` or `ssh://` address: host in small letters, no default port, no slash at the end.
/// # Errors
/// What is wrong with it and what to write instead, without the address: it may hold a password.
pub fn canonical(given: &str) -> Result<(&'static str, String), &'static str> {
    const PLAIN: &str = "write scheme://host/path in plain characters";
    let (protocol, default_port, rest) = match given.split_once("://") {
        Some(("https", rest)) => ("https", 443, rest),
        Some(("ssh", rest)) => ("ssh", 22, rest),
        _ => return Err("write https://host/path or ssh://user@host/path"),
    };
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let (user, endpoint) = authority.rsplit_once('@').map_or((None, authority), |(user, endpoint)| (Some(user), endpoint));
    if user.is_some_and(|user| protocol == "https" || user.contains(':')) {
        return Err("credentials do not belong into an address; remove them");
    }
    let word =
        |text: &str| text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)) && !text.is_empty() && !text.starts_with('-');
    let (host, port) = host_and_port(endpoint).ok_or(PLAIN)?;
    let path = path.trim_end_matches('/');
    if user.is_some_and(|user| !word(user)) || path.is_empty() || !path.split('/').all(is_plain_segment) {
        return Err(PLAIN);
    }
    let user = user.map(|user| format!("{user}@")).unwrap_or_default();
    let port = port.filter(|port| *port != default_port).map(|port| format!(":{port}")).unwrap_or_default();
    Ok((protocol, format!("{protocol}://{user}{}{port}/{path}", host.to_ascii_lowercase())))
}

/// `host`, `host:port`, `[address]` or `[address]:port`.
fn host_and_port(endpoint: &str) -> Option<(&str, Option<u16>)> {
    let end = if endpoint.starts_with('[') { endpoint.find(']')? + 1 } else { endpoint.find(':').unwrap_or(endpoint.len()) };
    let (host, rest) = endpoint.split_at(end);
    let is_host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => host.bytes().all(|b| b.is_ascii_alphanumeric() || b".-".contains(&b)) && !host.is_empty() && !host.starts_with(['-', '.']),
    };
    let port = match rest.strip_prefix(':') {
        Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => Some(digits.parse().ok().filter(|port| *port != 0)?),
        Some(_) => return None,
        None if rest.is_empty() => None,
        None => return None,
    };
    is_host.then_some((host, port))
}

/// One part of a path: no way up, also not in disguise, and no character with a meaning in an address or a shell.
fn is_plain_segment(segment: &str) -> bool {
    let plain = segment.bytes().all(|b| b.is_ascii_graphic() && !b"\"'`\\<>|;$(){}?#*&!^[]".contains(&b));
    let lower = segment.to_ascii_lowercase();
    let disguised = ["%2e", "%2f", "%5c", "%25", "%0", "%1"].iter().any(|code| lower.contains(code));
    plain && !disguised && !matches!(segment, "" | "." | "..") && !segment.starts_with('-')
}
