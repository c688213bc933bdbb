//! Kills of many containers: until nothing executes any more, and until the engine has nothing left.

use super::{Bench, PATIENCE, WAVE, kill, raw};
use crate::table::{Figure, Part};
use mosaic::kill::Killer;
use mosaic::kill::latch::Latch;
use mosaic::kill::receipt::KillRequest;
use mosaic::sandbox::docker::engine::container_name;
use mosaic::sandbox::{Drivers, RunSpec};
use std::sync::Arc;
use std::time::Instant;

/// By what they are killed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum By {
    Lane,
    Sweep,
    Engine,
}

impl Bench {
    /// The lane's kill of everything, over a bare sweep of SIGKILLs and over the engine's own kill of all at once; and the way to an empty engine.
    pub(super) fn kills(&self, drivers: &Drivers, count: usize, turns: usize, part: &mut Part) {
        let mut dead = [Vec::new(), Vec::new(), Vec::new()];
        let mut removed = [Vec::new(), Vec::new(), Vec::new()];
        for turn in 0..turns {
            for (index, by) in [By::Lane, By::Sweep, By::Engine].into_iter().enumerate() {
                let specs: Vec<RunSpec> = (0..count).map(|n| self.spec(&format!("kill-{count}-{turn}-{index}-{n}"), 1)).collect();
                for wave in specs.chunks(WAVE) {
                    self.start(drivers, wave);
                }
                let pids: Vec<i32> = specs.iter().map(|spec| self.pid(&spec.run)).collect();
                let started = Instant::now();
                let watching = std::thread::spawn(move || {
                    while pids.iter().any(|pid| std::path::Path::new(&format!("/proc/{pid}")).exists()) {
                        assert!(started.elapsed() < PATIENCE, "something still lives");
                        std::thread::sleep(std::time::Duration::from_millis(1));
                    }
                    started.elapsed().as_secs_f64()
                });
                self.strike(by, &specs);
                dead[index].push(watching.join().expect("a look"));
                self.remove_all(drivers, by, &specs);
                removed[index].push(started.elapsed().as_secs_f64());
                // What the driver keeps of it, outside the time.
                self.clear(drivers, specs.iter().map(|spec| &spec.run));
            }
        }
        let name = |what: &str| format!("{what}, {count} containers");
        let [lane, sweep, engine] = &dead;
        part.figures.push(Figure::of_seconds(&name("nothing executes after kill-all / sweep of SIGKILLs"), Some(2.0), lane, sweep));
        part.figures.push(Figure::of_seconds(&name("nothing executes after kill-all / engine kills at once"), Some(0.25), lane, engine));
        let [lane, _, engine] = &removed;
        part.figures.push(Figure::of_seconds(&name("all removed / engine kills and removes at once"), Some(1.15), lane, engine));
    }

    fn strike(&self, by: By, specs: &[RunSpec]) {
        match by {
            By::Lane => {
                let latch = Latch::open(self.folder.path()).map(Arc::new).map_err(|e| e.to_string());
                let killer = Killer { state: self.folder.path().to_owned(), latch, controller: None, audit: None };
                let receipts = killer.kill(&KillRequest { all: true, ..KillRequest::default() });
                assert!(receipts.all_dead() && receipts.agents.len() == specs.len(), "{receipts:?}");
            }
            By::Sweep => specs.iter().map(|spec| self.pid(&spec.run)).for_each(kill),
            By::Engine => {
                let names: Vec<String> = specs.iter().map(|spec| container_name(&self.installation, &spec.run)).collect();
                self.runtime.block_on(raw::kill_all(&self.engine, &names));
            }
        }
    }

    fn remove_all(&self, drivers: &Drivers, by: By, specs: &[RunSpec]) {
        match by {
            By::Engine => {
                let names: Vec<String> = specs.iter().map(|spec| container_name(&self.installation, &spec.run)).collect();
                self.runtime.block_on(raw::remove_all(&self.engine, &names));
            }
            // As the controller does for each agent.
            By::Lane => self.clear(drivers, specs.iter().map(|spec| &spec.run)),
            By::Sweep => {}
        }
        if by != By::Sweep {
            assert_eq!(self.containers(), 0, "all are removed");
        }
    }
}
