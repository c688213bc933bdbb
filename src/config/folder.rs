//! Where the state folder is.

use super::ConfigError;
use std::path::PathBuf;

/// The state folder: what was given, else `$XDG_STATE_HOME/mosaic`, else `~/.local/state/mosaic`.
/// # Errors
/// Nothing was given and there is no home folder.
pub fn state_folder(given: Option<PathBuf>, environment: impl Fn(&str) -> Option<std::ffi::OsString>) -> Result<PathBuf, ConfigError> {
    if let Some(path) = given {
        return Ok(std::path::absolute(&path).unwrap_or(path));
    }
    let absolute = |name: &str| environment(name).map(PathBuf::from).filter(|p| p.is_absolute());
    absolute("XDG_STATE_HOME")
        .map(|p| p.join("mosaic"))
        .or_else(|| absolute("HOME").map(|h| h.join(".local/state/mosaic")))
        .ok_or_else(|| ConfigError::Values(vec!["state: there is no home folder; name a state folder with --state".to_owned()]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_folder_follows_xdg_then_home() {
        let of =
            |xdg: Option<&str>, home: Option<&str>| state_folder(None, |name| if name == "HOME" { home } else { xdg }.map(Into::into)).ok();
        assert_eq!(of(Some("/x"), Some("/h")), Some("/x/mosaic".into()));
        assert_eq!(of(Some("relative"), Some("/h")), Some("/h/.local/state/mosaic".into()));
        assert_eq!(of(None, None), None);
    }
}
