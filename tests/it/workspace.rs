//! Workspaces on real repositories, made and looked at by the `git` program.

mod address;
mod crash;
mod fixture;
mod hostile;
mod integrate;
mod network;
mod push;
mod race;
mod rescue;
mod snapshot;
mod trees;
