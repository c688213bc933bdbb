//! The one offline test binary: everything that needs no Docker, Valkey, Kubernetes or browser.

mod audit;
mod contracts;
mod e2e;
mod gates;
mod records;
mod tidy;
mod tools;
mod workspace;
