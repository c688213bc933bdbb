//! The main job end to end, by the built program: declare an agent over HTTP, look at the remote with git, at the process table, at the
//! mounts and at the state folder. Nothing here reads our own log.

mod concurrency;
mod crash;
pub mod harness;
mod kills;
mod limits;
mod mistakes;
mod neighbours;
mod push_integrity;
mod remotes;
mod rounds;
mod waves;
