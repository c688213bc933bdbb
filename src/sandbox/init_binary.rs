//! Finding `mosaic-init`: beside this program, as it is installed, or where a build from source leaves it.
//!
//! It is copied into no image and needs no library of the host, so it must be static; that is checked here, before the first sandbox
//! fails in a way that nobody understands.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Names another `mosaic-init`.
pub const VARIABLE: &str = "MOSAIC_INIT";
/// Builds it.
pub const BUILD_COMMAND: &str =
    "cargo rustc --release --bin mosaic-init --no-default-features --target-dir target/init -- -C target-feature=+crt-static";
const NAME: &str = "mosaic-init";
/// The part of a program that holds its ELF and program headers.
const HEADER_BYTES: usize = 4096;

/// Why there is no usable init.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// Nowhere.
    #[error("mosaic-init was found neither in ${VARIABLE} nor at {looked_at}; build it with: {BUILD_COMMAND}")]
    Missing {
        /// Where we looked.
        looked_at: String,
    },
    /// It is there, but cannot be used.
    #[error("{} cannot be used as init: {why}; build it with: {BUILD_COMMAND}", path.display())]
    Unusable {
        /// Where.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
}

/// Finds init and checks it.
/// # Errors
/// Says where it looked or what is wrong, and how to build it.
pub fn find_init() -> Result<PathBuf, InitError> {
    if let Some(path) = std::env::var_os(VARIABLE).map(PathBuf::from) {
        return check(&path).map(|()| path);
    }
    let program = std::env::current_exe().unwrap_or_default();
    let beside = program.parent().map(|folder| folder.join(NAME));
    // target/<profile>/mosaic or target/<profile>/deps/<test>: the static one is at target/init/release.
    let built = program.ancestors().filter(|folder| folder.ends_with("target")).map(|target| target.join("init/release").join(NAME));
    let candidates: Vec<PathBuf> = built.chain(beside).collect();
    // A debug build leaves a dynamic mosaic-init beside itself: the first usable one counts, else what is wrong with the last.
    let mut unusable = None;
    for path in candidates.iter().filter(|path| path.is_file()) {
        match check(path) {
            Ok(()) => return Ok(path.clone()),
            Err(e) => unusable = Some(e),
        }
    }
    let looked_at = || candidates.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(" or ");
    Err(unusable.unwrap_or_else(|| InitError::Missing { looked_at: looked_at() }))
}

/// Checks that a program is a static one for this machine.
/// # Errors
/// Says what it is instead.
pub fn check(path: &Path) -> Result<(), InitError> {
    let mut header = Vec::new();
    let read = File::open(path).and_then(|file| file.take(HEADER_BYTES as u64).read_to_end(&mut header));
    let unusable = |why: String| InitError::Unusable { path: path.to_owned(), why };
    read.map_err(|e| unusable(e.to_string()))?;
    match problem_of(&header) {
        Some(why) => Err(unusable(why.to_owned())),
        None => Ok(()),
    }
}

/// What is wrong with the beginning of a program; `None`: it is a static 64-bit program for this machine.
fn problem_of(header: &[u8]) -> Option<&'static str> {
    const PROGRAM_INTERPRETER: u32 = 3;
    let machine: u16 = if cfg!(target_arch = "aarch64") { 183 } else { 62 };
    let number = |at: usize, length: usize| -> Option<u64> {
        let bytes = header.get(at..at + length)?;
        Some(bytes.iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte)))
    };
    if !header.starts_with(b"\x7fELF\x02\x01") {
        return Some("it is no 64-bit ELF program");
    }
    if number(18, 2) != Some(u64::from(machine)) {
        return Some("it is for another machine");
    }
    let (Some(offset), Some(size), Some(count)) = (number(32, 8), number(54, 2), number(56, 2)) else {
        return Some("its header is cut off");
    };
    for index in 0..count {
        let at = usize::try_from(offset + index * size).unwrap_or(usize::MAX - 4);
        match number(at, 4) {
            Some(kind) if kind == u64::from(PROGRAM_INTERPRETER) => return Some("it is linked dynamically"),
            Some(_) => {}
            None => return Some("its header is cut off"),
        }
    }
    None
}
