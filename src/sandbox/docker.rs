//! The docker driver: a sandbox is a container with `mosaic-init` as its PID 1.

pub mod engine;
pub mod labels;
