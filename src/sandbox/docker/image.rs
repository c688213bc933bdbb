//! Images: names are checked before they become part of a request, absent ones are pulled, and each failure has its own reason.
//!
//! Pulled is what is not there, and nothing else: an image that is there is used as it is. The engine's own configuration knows the
//! registries; no credential is here.

use super::engine::{Engine, EngineError};
use crate::sandbox::bridge::Bridge;
use crate::sandbox::{Refusal, SandboxError};

/// Longest name of an image.
const NAME_BYTES_MAX: usize = 500;

/// An image that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundImage {
    /// Its name, as it was asked for; with a tag if it had neither tag nor digest.
    pub name: String,
    /// The engine's id: what a container is made of, whatever the name means a moment later.
    pub id: String,
    /// Folders that the image wants as volumes.
    pub volumes: Vec<String>,
}

/// Checks a name; with `:latest` where it names neither tag nor digest, so that a pull never brings all tags.
/// # Errors
/// Says what a name must look like.
pub fn check_name(name: &str) -> Result<String, String> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._-/:@".contains(&b);
    let rule = "write it as NAME, NAME:TAG or NAME@sha256:DIGEST, with letters, digits and ._-/ in the name";
    let whole = !name.is_empty() && name.len() <= NAME_BYTES_MAX && name.bytes().all(allowed);
    // Anything else could lead a request elsewhere.
    let parts = name.split('/').all(|part| part.starts_with(|c: char| c.is_ascii_alphanumeric()));
    if !whole || !parts || name.contains("..") || name.matches('@').count() > 1 {
        return Err(format!("{name:?} is no name of an image: {rule}"));
    }
    let last = name.rsplit('/').next().unwrap_or(name);
    Ok(if last.contains(':') || last.contains('@') { name.to_owned() } else { format!("{name}:latest") })
}

/// What a failure to get an image means.
#[must_use]
pub fn failure(image: &str, error: &EngineError) -> SandboxError {
    let text = crate::causes::one_line(error);
    let low = text.to_lowercase();
    let says = |words: &[&str]| words.iter().any(|word| low.contains(word));
    let (why, help) = match error {
        EngineError::Refused { .. } if says(&["unauthorized", "authentication required", "denied", "forbidden", "no basic auth"]) => (
            Refusal::ImageRefused,
            "log the engine in to the registry, or choose another image; a name that does not exist can look the same",
        ),
        EngineError::Refused { .. }
            if says(&["not found", "manifest unknown", "no such image", "repository does not exist", "name unknown"]) =>
        {
            (Refusal::ImageNotFound, "build it on the engine's host, or choose another one with spec.sandbox.image or --sandbox-image")
        }
        EngineError::Refused { .. } if says(&["no matching manifest", "no match for platform"]) => {
            (Refusal::ImagePlatform, "choose an image that is built for this machine")
        }
        EngineError::Refused { .. } => (Refusal::ImagePullFailed, "it is tried again"),
        EngineError::TimedOut { .. } | EngineError::Unreachable { .. } | EngineError::Address { .. } => {
            (Refusal::EngineUnavailable, "it is tried again")
        }
    };
    SandboxError::Refused { why, message: format!("cannot get the image {image}: {text}; {help}") }
}

/// Told how far a pull is, as the end of a sentence about the run that waits for it.
pub(super) type Tell = Box<dyn Fn(String) + Send>;

/// Finds an image, or pulls it. `machine` is what the engine runs on, as images name it.
pub(super) fn provide(
    bridge: &Bridge,
    engine: Engine,
    image: &str,
    machine: &(String, String),
    is_over: &dyn Fn() -> bool,
    tell: Tell,
) -> Result<FoundImage, SandboxError> {
    let name = check_name(image).map_err(|message| SandboxError::Refused { why: Refusal::ImageNotFound, message })?;
    let look = |engine: Engine, name: String| bridge.wait(async move { engine.image(&name).await }).map_err(|e| failure(image, &e));
    let mut found = look(engine.clone(), name.clone())?;
    if found.is_none() {
        tracing::info!(image = name, "pulling an image");
        let (pulling, pulled) = (engine.clone(), name.clone());
        tell(format!("pulling the image {name}"));
        let named = name.clone();
        let tell = move |text: &str| tell(format!("pulling the image {named}: {text}"));
        match bridge.wait_unless(is_over, async move { pulling.pull(&pulled, tell).await }) {
            Some(outcome) => outcome.map_err(|e| failure(image, &e))?,
            None => {
                let message = format!("the pull of {name} is not wanted any more");
                return Err(SandboxError::Refused { why: Refusal::ImagePullFailed, message });
            }
        }
        found = look(engine, name.clone())?;
    }
    let Some(found) = found else {
        let message = format!("the engine pulled {name}, but does not have it");
        return Err(SandboxError::Refused { why: Refusal::ImagePullFailed, message });
    };
    let of = (found.os.unwrap_or_default(), found.architecture.unwrap_or_default());
    if of != *machine {
        let message = format!("the image {name} is for {}/{}, and the engine's machine is {}/{}", of.0, of.1, machine.0, machine.1);
        return Err(SandboxError::Refused { why: Refusal::ImagePlatform, message });
    }
    let volumes = found.config.and_then(|config| config.volumes).unwrap_or_default();
    Ok(FoundImage { name, id: found.id.unwrap_or_default(), volumes })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_whole_and_lead_nowhere_else() {
        for (name, whole) in [
            ("debian", "debian:latest"),
            ("registry.example.org:5000/team/image", "registry.example.org:5000/team/image:latest"),
            ("a/b:1.2", "a/b:1.2"),
        ] {
            assert_eq!(check_name(name).as_deref(), Ok(whole));
        }
        let digest = format!("a@sha256:{}", "0".repeat(64));
        assert_eq!(check_name(&digest), Ok(digest));
        for name in ["", "../containers/x", "a/../b", "a b", "a?x=1", "a#b", "/a", "a//b", "a%2fb", "-a", "a\n", "ä", "a@b@c"] {
            assert!(check_name(name).is_err(), "{name:?}");
        }
    }
}
