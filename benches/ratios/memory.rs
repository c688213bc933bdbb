//! Memory: what ten thousand idle agents add to the controller, over what they add to the usual cache of typed objects.
//!
//! Each sample is a fresh process, this program started again, that prints by how much its resident memory (VmRSS) grew.
//! Ours: the real `Controller` over a real `EmbeddedStore`. `declared`: with one agent settled, 10,000 more are declared, each has had its
//! passes, its finalizer and its status. `restarted`: the same store opened anew; the growth counts from before it is opened, and the
//! program that a pass needs was warmed up with another store before. Floor: `kube::runtime::reflector::store::<Agent>()` filled with the very same
//! objects, read from a file one by one; the growth counts from one object.
//! All wait until idle threads have ended, and hand free pages back to the kernel before either look, as `mosaic up` does once a minute.
//!
//! Ours is measured twice: with the page cache that a store has unless told otherwise, and with hardly any.

use crate::rig::Rig;
use crate::table::{Figure, Part, median};
use kube::runtime::{reflector, watcher};
use mosaic::api::agent::Agent;
use mosaic::store::embedded::EmbeddedOptions;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const AGENTS: usize = 10_000;
/// Turns.
const TURNS: usize = 5;
/// tokio ends a blocking thread after ten idle seconds.
const IDLE: Duration = Duration::from_secs(11);
/// As little as a store can work with, so that its page cache does not count.
const CACHE_BYTES_MIN: usize = 64 << 10;
/// Tells a child what to measure, and where.
const VARIABLE: &str = "MOSAIC_BENCH_MEMORY";

/// Whether this process was started to measure itself.
pub fn is_child() -> bool {
    std::env::var_os(VARIABLE).is_some()
}

/// Measures this process and prints the growth in bytes.
pub fn child() {
    let order = std::env::var(VARIABLE).expect("it was looked for");
    // As `mosaic up` begins.
    mosaic::heap::limit_arenas();
    let (what, folder) = order.split_once(' ').expect("what and where");
    let folder = PathBuf::from(folder);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let grown = runtime.block_on(async {
        match what {
            "declared" => declared(&folder, EmbeddedOptions::default()).await,
            "declared-bare" => declared(&folder, bare()).await,
            "restarted" => restarted(&folder, EmbeddedOptions::default()).await,
            "reflector" => typed_reflector(&folder.join("objects")).await,
            other => panic!("nobody knows how to measure {other}"),
        }
    });
    println!("{grown}");
}

fn bare() -> EmbeddedOptions {
    EmbeddedOptions { cache_bytes: CACHE_BYTES_MIN, ..EmbeddedOptions::default() }
}

async fn declared(folder: &Path, options: EmbeddedOptions) -> i64 {
    let rig = Rig::start(folder, options);
    rig.declare(0, 1).await;
    tokio::time::sleep(IDLE).await;
    let before = settled_bytes();
    rig.declare(1, AGENTS + 1).await;
    let grown = grown_since(before).await;
    let mut file = std::io::BufWriter::new(std::fs::File::create(folder.join("objects")).expect("a fresh file"));
    for object in rig.objects().await {
        writeln!(file, "{object}").expect("room on the disk");
    }
    file.flush().expect("room on the disk");
    rig.end().await;
    grown
}

async fn restarted(folder: &Path, options: EmbeddedOptions) -> i64 {
    let other = tempfile::tempdir().expect("a folder for the warm-up");
    let warm = Rig::start(other.path(), options.clone());
    warm.declare(0, 1).await;
    warm.end().await;
    tokio::time::sleep(IDLE).await;
    let before = settled_bytes();
    let rig = Rig::start(folder, options);
    rig.settled().await;
    let grown = grown_since(before).await;
    rig.end().await;
    grown
}

async fn typed_reflector(objects: &Path) -> i64 {
    let (reader, mut writer) = reflector::store::<Agent>();
    let mut lines = BufReader::new(std::fs::File::open(objects).expect("the objects"));
    let (mut line, mut before) = (String::new(), 0);
    while lines.read_line(&mut line).expect("lines") > 0 {
        let agent: Agent = serde_json::from_str(&line).expect("an agent");
        writer.apply_watcher_event(&watcher::Event::Apply(agent));
        if before == 0 {
            before = settled_bytes();
        }
        line.clear();
    }
    let grown = grown_since(before).await;
    assert_eq!(reader.len(), AGENTS + 1);
    grown
}

async fn grown_since(before: i64) -> i64 {
    tokio::time::sleep(IDLE).await;
    settled_bytes() - before
}

/// Resident memory without free pages: at the start of a growth as at its end, or what the start had left lying about would hide growth.
fn settled_bytes() -> i64 {
    mosaic::heap::give_back();
    resident_bytes()
}

fn resident_bytes() -> i64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("the kernel tells");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a line VmRSS");
    1024 * line.trim().trim_end_matches(" kB").parse::<i64>().expect("a number")
}

/// Measures the part.
pub fn measure() -> Part {
    let (mut sides, mut object_bytes) = ([const { Vec::new() }; 4], 0);
    for turn in 0..TURNS {
        eprintln!("  turn {} of {TURNS}", turn + 1);
        let folder = tempfile::Builder::new().prefix("mosaic-bench-").tempdir().expect("a folder for the benches");
        let (usual, lean) = (folder.path().join("usual"), folder.path().join("lean"));
        for place in [&usual, &lean] {
            std::fs::create_dir(place).expect("a fresh folder");
        }
        let orders = [("declared", &usual), ("reflector", &usual), ("restarted", &usual), ("declared-bare", &lean)];
        for ((what, place), side) in orders.into_iter().zip(&mut sides) {
            side.push(run_child(what, place));
        }
        object_bytes = std::fs::metadata(usual.join("objects")).map_or(0, |seen| seen.len()) / (AGENTS as u64 + 1);
    }
    let [declared, reflector, restarted, declared_bare] = sides;
    let figures = vec![
        figure("memory of 10,000 idle agents / typed reflector", Some(0.6), &declared, &reflector),
        figure("  without the store's page cache", Some(0.6), &declared_bare, &reflector),
        figure("  after a restart, everything included", Some(0.6), &restarted, &reflector),
    ];
    let cache = EmbeddedOptions::default().cache_bytes >> 20;
    let foot = vec![format!(
        "memory: growth of VmRSS by {AGENTS} suspended agents of {object_bytes} bytes JSON each, in a fresh process per sample, passes, finalizer \
         and status included. Floor = kube::runtime::reflector::store::<Agent>() with the same objects. The page cache may hold {cache} MiB; \
         `without` gives it {} KiB. A restart counts from before the store is opened. All have two arenas and hand free pages back first, as mosaic up does.",
        CACHE_BYTES_MIN >> 10
    )];
    Part { figures, foot }
}

fn figure(name: &str, goal: Option<f64>, ours: &[f64], floor: &[f64]) -> Figure {
    let megabytes = |values: &[f64]| format!("{:.1} MB", median(values) / 1e6);
    let ratios = ours.iter().zip(floor).map(|(ours, floor)| ours / floor).collect();
    Figure { name: name.to_owned(), ratios, goal, ours: megabytes(ours), floor: megabytes(floor) }
}

fn run_child(what: &str, place: &Path) -> f64 {
    let program = std::env::current_exe().expect("this program");
    let order = format!("{what} {}", place.display());
    let output = Command::new(program).env(VARIABLE, order).output().expect("it starts again");
    assert!(output.status.success(), "{what}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().parse().expect("a number")
}
