//! On a real Kubernetes API server, the one that `KUBECONFIG` names: a cluster for tests, since all agents and halts there are removed. One test
//! at a time has it. Some tests need `kubectl` in `PATH`, or a program that stops and starts the API server.

mod cluster;
mod contract;
mod e2e;
mod faults;
mod kills;
mod lease;
mod pods;
mod rights;
mod standby;
mod words;
