//! Valkey: a status written by compare-and-set with its change and event told, over the least script that does the same on the same server.
//!
//! Ours checks the status against the schema, writes one of many records, tells the change to watches (whose feed runs meanwhile) and the
//! event, and reads the record back. The floor compares a version, writes 2 KB and appends 2 KB to a stream. Both go over one connection
//! each, one and sixteen at once, taking turns on one server; once acknowledged from memory, once from the server's disk (`WAITAOF`).

use crate::table::{Figure, Part};
use fred::clients::Client;
use fred::interfaces::ClientLike;
use fred::types::{Builder, ClusterHash, CustomCommand, Value, config::Config};
use futures::StreamExt;
use mosaic::store::valkey::{Durability, ValkeyOptions, ValkeyStore, ValkeyUrl};
use mosaic::store::{Record, Store};
use serde_json::json;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Turns of each side.
const TURNS: usize = 9;
/// Writes in one turn of one side.
const WRITES: usize = 800;
/// Longest wait for the server.
const START_TIME_MAX: Duration = Duration::from_secs(20);

const RAW: &str = "if redis.call('HGET', KEYS[1], 'version') ~= ARGV[1] then return 0 end \
                   redis.call('HSET', KEYS[1], 'version', ARGV[2], 'record', ARGV[3]) \
                   redis.call('XADD', KEYS[2], 'MAXLEN', '=', '4096', '*', 'record', ARGV[3]) return 1";

struct Server {
    child: Child,
    port: u16,
    _folder: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn program() -> Option<PathBuf> {
    let named = std::env::var_os("MOSAIC_TEST_VALKEY_SERVER").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    named.into_iter().chain(std::env::split_paths(&path).map(|folder| folder.join("valkey-server"))).find(|program| program.is_file())
}

impl Server {
    fn start() -> Option<Self> {
        let folder = tempfile::tempdir().expect("a folder");
        let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port").port();
        let mut command = Command::new(program()?);
        command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "yes", "--appendfsync", "always"]);
        let child = command.arg("--dir").arg(folder.path()).stdout(Stdio::null()).spawn().expect("a server");
        let started = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(started.elapsed() < START_TIME_MAX, "the server does not start");
            std::thread::sleep(Duration::from_millis(10));
        }
        Some(Self { child, port, _folder: folder })
    }
}

/// Measures; without a server there is nothing to say.
pub fn measure() -> Part {
    let Some(server) = Server::start() else {
        let foot = vec!["valkey: SKIPPED, there is no valkey-server: name one in MOSAIC_TEST_VALKEY_SERVER".to_owned()];
        return Part { figures: Vec::new(), foot };
    };
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let figures = runtime.block_on(async {
        let mut figures = Vec::new();
        for (durability, promise) in [(Durability::None, "memory"), (Durability::Aof, "disk")] {
            let mut sides = Sides::open(server.port, durability, promise).await;
            for at_once in [1, 16] {
                let (mut ours, mut floor) = (Vec::new(), Vec::new());
                sides.turn(at_once).await;
                for _ in 0..TURNS {
                    let (mine, raw) = sides.turn(at_once).await;
                    ours.push(mine);
                    floor.push(raw);
                }
                let name = format!("valkey: status by compare-and-set, acknowledged from {promise}, {at_once} at once");
                // A goal of 0.8 of the throughput.
                figures.push(Figure::of_seconds(&name, Some(1.25), &ours, &floor));
            }
        }
        figures
    });
    let foot = "valkey: time per write of a 2 KB record; floor: the least script that compares, writes and appends, same connection count, same \
                server (appendfsync always), from disk with WAITAOF behind each write; goal 1.25 is 0.8 of the throughput";
    Part { figures, foot: vec![foot.to_owned()] }
}

struct Sides {
    store: ValkeyStore,
    records: Vec<Record>,
    raw: Client,
    hash: String,
    durable: bool,
    prefix: String,
    /// The version of each raw record.
    versions: Vec<u64>,
    payload: String,
}

impl Sides {
    async fn open(port: u16, durability: Durability, prefix: &str) -> Self {
        let url = format!("valkey://127.0.0.1:{port}");
        let options = ValkeyOptions { prefix: prefix.to_owned(), durability, ..ValkeyOptions::default() };
        let store = ValkeyStore::open(&ValkeyUrl::parse(&url).expect("an address"), options).await.expect("a store");
        let created = futures::stream::iter(0..16).then(|n| store.create(agent(n)));
        let records: Vec<Record> = created.map(|result| result.expect("a record")).collect().await;
        let payload = serde_json::to_string(&records[0]).expect("plain data");
        let raw = Builder::from_config(Config::from_url(&url).expect("an address")).build().expect("a client");
        raw.init().await.expect("a connection");
        let load = CustomCommand::new_static("SCRIPT", ClusterHash::FirstKey, false);
        let hash: String = raw.custom(load, vec!["LOAD", RAW]).await.expect("a script");
        let (durable, prefix) = (durability == Durability::Aof, prefix.to_owned());
        let sides = Self { store, records, raw, hash, durable, prefix, versions: vec![0; 16], payload };
        for n in 0..16 {
            let set = CustomCommand::new_static("HSET", ClusterHash::FirstKey, false);
            let _: Value = sides.raw.custom(set, vec![sides.key(n), "version".to_owned(), "0".to_owned()]).await.expect("a record");
        }
        sides
    }

    fn key(&self, n: usize) -> String {
        format!("raw:{}:{n}", self.prefix)
    }

    /// Seconds per write of ours and of the floor.
    async fn turn(&mut self, at_once: usize) -> (f64, f64) {
        let began = Instant::now();
        let ours = self.records.iter_mut().take(at_once).map(|record| {
            let store = &self.store;
            async move {
                for _ in 0..WRITES / at_once {
                    let attempt = record.status["attempt"].as_u64().unwrap_or(0) + 1;
                    record.status = json!({ "attempt": attempt, "phase": if attempt % 2 == 0 { "Running" } else { "Spawning" } });
                    *record = store.replace_status(record.clone()).await.expect("a write");
                }
            }
        });
        futures::future::join_all(ours).await;
        let ours = began.elapsed().as_secs_f64() / WRITES as f64;

        let began = Instant::now();
        let mut versions = std::mem::take(&mut self.versions);
        let this = &*self;
        let raw = versions.iter_mut().enumerate().take(at_once).map(|(n, version)| async move {
            for _ in 0..WRITES / at_once {
                this.raw_write(n, *version).await;
                *version += 1;
            }
        });
        futures::future::join_all(raw).await;
        self.versions = versions;
        (ours, began.elapsed().as_secs_f64() / WRITES as f64)
    }

    async fn raw_write(&self, n: usize, version: u64) {
        let (key, stream) = (self.key(n), format!("raw:{}:changes", self.prefix));
        let (old, new) = (version.to_string(), (version + 1).to_string());
        let args = vec![self.hash.clone(), "2".to_owned(), key, stream, old, new, self.payload.clone()];
        let call = CustomCommand::new_static("EVALSHA", ClusterHash::FirstKey, false);
        if !self.durable {
            let done: i64 = self.raw.custom(call, args).await.expect("an answer");
            return assert_eq!(done, 1);
        }
        let pipeline = self.raw.pipeline();
        let _: () = pipeline.custom(call, args).await.expect("queued");
        let wait = CustomCommand::new_static("WAITAOF", ClusterHash::FirstKey, false);
        let _: () = pipeline.custom(wait, vec![1i64, 0, 4000]).await.expect("queued");
        let answers: Vec<Value> = pipeline.all().await.expect("answers");
        assert_eq!(answers[0].as_i64(), Some(1));
    }
}

/// About 2 KB of JSON.
fn agent(number: usize) -> Record {
    let object = json!({
        "kind": "Agent",
        "metadata": { "name": format!("agent-{number:05}"), "namespace": "default" },
        "spec": {
            "context": { "repository": "https://git.example.org/group/project.git", "instructions": "x".repeat(1600) },
            "runtime": { "command": { "args": ["agent", "--headless"] } },
        },
    });
    serde_json::from_value(object).expect("a record")
}
