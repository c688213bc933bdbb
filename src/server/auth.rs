//! Who is let in: the bearer token, and the names under which the server may be addressed.
//!
//! The token is made at the first start and kept in the state folder, readable by its owner only. Only its SHA-256 is held here, and
//! compared in constant time. The Host header must name this server, or a page in a browser could reach it through a name of its own
//! that resolves to 127.0.0.1; for the same reason a foreign Origin is refused.

use super::error::Problem;
use super::{Ctx, URL_BYTES_MAX};
use crate::api::names::Secret;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use rand::TryRngCore;
use sha2::{Digest, Sha256};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use subtle::ConstantTimeEq;

/// Length of a new token before it is written as hexadecimal digits.
const TOKEN_BYTES: usize = 32;
/// Shortest and longest token that is taken from the file.
const TOKEN_CHARS: std::ops::RangeInclusive<usize> = 32..=512;

/// What the door knows.
pub struct Door {
    token_digest: [u8; 32],
    port: u16,
}

impl Door {
    /// A door for that token, on that port.
    #[must_use]
    pub fn new(token: &Secret, port: u16) -> Self {
        Self { token_digest: Sha256::digest(token.expose().as_bytes()).into(), port }
    }

    fn knows(&self, token: &str) -> bool {
        let digest: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        digest.ct_eq(&self.token_digest).into()
    }

    /// Whether `host[:port]` names this server.
    fn is_mine(&self, authority: &str) -> bool {
        let (name, port) = match authority.rsplit_once(':') {
            Some((name, port)) if !port.ends_with(']') => (name, port.parse().ok()),
            Some(_) | None => (authority, Some(80)),
        };
        port == Some(self.port) && ["localhost", "127.0.0.1", "[::1]"].iter().any(|mine| name.eq_ignore_ascii_case(mine))
    }
}

/// The token of a state folder; made at the first call.
/// # Errors
/// The file cannot be read or written, others could read it, or it holds no token; the text says what to do.
pub fn ensure_token(state: &Path) -> Result<Secret, String> {
    let path = state.join("token");
    let mut bytes = [0u8; TOKEN_BYTES];
    rand::rngs::OsRng.try_fill_bytes(&mut bytes).map_err(|e| format!("failed to make a token: {e}"))?;
    let fresh: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
    let written = crate::durable::make_once(&path, format!("{fresh}\n").as_bytes());
    written.map_err(|e| format!("failed to write the token file {}: {e}", path.display()))?;
    read_token(state)
}

/// The token of a state folder that a server has made.
/// # Errors
/// As [`ensure_token`], and when there is none yet.
pub fn read_token(state: &Path) -> Result<Secret, String> {
    let path = state.join("token");
    let fail = |e: std::io::Error| format!("failed to read the token file {}: {e}", path.display());
    let mode = std::fs::metadata(&path).map_err(fail)?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(format!("others may read the token file {0} (mode {mode:o}); run `chmod 600 {0}`", path.display()));
    }
    let token = std::fs::read_to_string(&path).map_err(fail)?.trim().to_owned();
    if !TOKEN_CHARS.contains(&token.len()) || !token.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(format!("the token file {0} holds no token; remove it, and the next start makes a new one", path.display()));
    }
    Ok(Secret::new(token))
}

/// Lets in only who has the token.
/// # Errors
/// 401 without one, or with a wrong one.
pub async fn require_token(State(state): Ctx, request: Request, next: Next) -> Result<Response, Problem> {
    let given = request.headers().get(header::AUTHORIZATION).and_then(|v| v.to_str().ok());
    let token = given.and_then(|v| v.split_once(' ')).filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer")).map(|(_, t)| t.trim());
    let refuse = |code, detail| {
        let hint = "the token is in the file `token` of the server's state folder; send it as `Authorization: Bearer …` (clients read MOSAIC_TOKEN)";
        Problem::new(StatusCode::UNAUTHORIZED, code, detail).hint(hint)
    };
    match token {
        None => Err(refuse("no-token", "this needs a bearer token")),
        Some(token) if state.door.knows(token) => Ok(next.run(request).await),
        Some(_) => Err(refuse("wrong-token", "the bearer token is not the one of this server")),
    }
}

/// Lets in only requests that address this server by a name of its own, under a path of a sane length.
/// # Errors
/// 421 for a foreign Host, 403 for a foreign Origin, 414 for a path that is too long.
pub async fn require_host(State(state): Ctx, request: Request, next: Next) -> Result<Response, Problem> {
    let url_bytes = request.uri().path_and_query().map_or(0, |p| p.as_str().len());
    if url_bytes > URL_BYTES_MAX {
        let detail = format!("path and query have {url_bytes} bytes; at most {URL_BYTES_MAX} are taken");
        return Err(Problem::new(StatusCode::URI_TOO_LONG, "uri-too-long", detail));
    }
    let host = single(request.headers(), &header::HOST);
    if !host.is_some_and(|h| state.door.is_mine(h)) {
        let detail = format!("the Host header {:?} does not name this server", host.unwrap_or_default());
        let hint = format!("use http://127.0.0.1:{0} or http://localhost:{0}", state.door.port);
        return Err(Problem::new(StatusCode::MISDIRECTED_REQUEST, "wrong-host", detail).hint(hint));
    }
    if request.headers().contains_key(header::ORIGIN) {
        let origin = single(request.headers(), &header::ORIGIN).and_then(|o| o.strip_prefix("http://"));
        if !origin.is_some_and(|o| state.door.is_mine(o)) {
            return Err(Problem::new(StatusCode::FORBIDDEN, "wrong-origin", "pages of other sites may not call this server"));
        }
    }
    Ok(next.run(request).await)
}

fn single<'a>(headers: &'a HeaderMap, name: &header::HeaderName) -> Option<&'a str> {
    let mut all = headers.get_all(name).iter();
    let first = all.next()?.to_str().ok()?;
    all.next().is_none().then_some(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_own_names_and_the_own_port_are_mine() {
        let door = Door::new(&Secret::new("t"), 3001);
        for mine in ["localhost:3001", "127.0.0.1:3001", "[::1]:3001", "LocalHost:3001"] {
            assert!(door.is_mine(mine), "{mine}");
        }
        for foreign in
            ["evil.example:3001", "localhost", "localhost:3002", "127.0.0.1.evil.example:3001", "", "[::1]", "localhost:3001:3001"]
        {
            assert!(!door.is_mine(foreign), "{foreign}");
        }
        assert!(Door::new(&Secret::new("t"), 80).is_mine("[::1]"));
    }

    #[test]
    fn the_token_is_made_once_and_private() {
        let state = tempfile::tempdir().unwrap();
        let first = ensure_token(state.path()).unwrap();
        assert_eq!(first.expose().len(), 64);
        assert!(ensure_token(state.path()).unwrap() == first);
        let path = state.path().join("token");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(read_token(state.path()).unwrap_err().contains("chmod 600"));
    }
}
