//! The one offline test binary: everything that needs no Docker, Valkey, Kubernetes or browser.

mod cli;
mod contracts;
mod gates;
mod http;
mod records;
mod tidy;
mod tools;
