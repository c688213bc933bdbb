//! Hostile git: what an agent can plant in its tree, and then everything that the controller does with it. Seen from outside: no planted
//! program ran, nothing of the host is in the remote, and exactly the refs that were pushed are there.

use super::fixture::*;
use mosaic::api::names::{Attempt, CommitId};
use mosaic::plan::observed::{Integrated, Pushed, Snapshot};
use mosaic::workspace::*;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What the snapshot makes of it.
#[derive(Debug, Clone, Copy, PartialEq)]
enum End {
    /// A commit that is pushed, with the agent's ordinary work in it.
    Pushed,
    /// Refused, with these words.
    Refused(&'static str),
}
use End::{Pushed as Goes, Refused};

/// Name, end, and the script that plants it: in the tree, with `$X` a program that must never run, `$SECRET` a file of the host and
/// `$HOST` a repository of the host.
const VECTORS: &[(&str, End, &str)] = &[
    (
        "hooks",
        Goes,
        r#"mkdir -p .git/hooks; for h in pre-commit pre-push post-checkout post-merge post-commit commit-msg prepare-commit-msg reference-transaction update pre-receive post-update push-to-checkout fsmonitor-watchman sendemail-validate post-index-change pre-auto-gc; do cp "$X" .git/hooks/$h; done"#,
    ),
    (
        "hooksPath in the tree",
        Goes,
        r#"mkdir myhooks; cp "$X" myhooks/pre-push; cp "$X" myhooks/post-checkout; printf '[core]\n\thooksPath = %s/myhooks\n' "$PWD" >> .git/config"#,
    ),
    ("fsmonitor", Goes, r#"printf '[core]\n\tfsmonitor = %s\n' "$X" >> .git/config"#),
    (
        "filter clean and smudge",
        Goes,
        r#"printf '[filter "e"]\n\tclean = %s\n\tsmudge = %s\n\trequired = true\n' "$X" "$X" >> .git/config; echo '* filter=e' > .gitattributes"#,
    ),
    ("filter process", Goes, r#"printf '[filter "e"]\n\tprocess = %s\n' "$X" >> .git/config; echo '* filter=e' > .gitattributes"#),
    (
        "filter by info/attributes",
        Goes,
        r#"printf '[filter "e"]\n\tclean = %s\n\tsmudge = %s\n' "$X" "$X" >> .git/config; mkdir -p .git/info; echo '* filter=e' > .git/info/attributes"#,
    ),
    (
        "textconv",
        Goes,
        r#"printf '[diff "e"]\n\ttextconv = %s\n\tcachetextconv = true\n' "$X" >> .git/config; echo '* diff=e' > .gitattributes"#,
    ),
    (
        "diff driver",
        Goes,
        r#"printf '[diff]\n\texternal = %s\n[diff "e"]\n\tcommand = %s\n' "$X" "$X" >> .git/config; echo '* diff=e' > .gitattributes"#,
    ),
    (
        "merge driver",
        Goes,
        r#"printf '[merge "e"]\n\tdriver = %s %%O %%A %%B\n\trecursive = e\n[merge]\n\tdefault = e\n' "$X" >> .git/config; echo '* merge=e' > .gitattributes; echo four >> src/main.txt"#,
    ),
    (
        "mergetool and difftool",
        Goes,
        r#"printf '[merge]\n\ttool = e\n[mergetool "e"]\n\tcmd = %s\n[difftool "e"]\n\tcmd = %s\n' "$X" "$X" >> .git/config"#,
    ),
    (
        "ident and working-tree-encoding",
        Goes,
        r#"echo '* ident working-tree-encoding=UTF-16 text eol=crlf export-subst' > .gitattributes; printf '$Id$\n' > ident.txt"#,
    ),
    (
        "include.path",
        Goes,
        r#"printf '[core]\n\tfsmonitor = %s\n\tsshCommand = %s\n' "$X" "$X" > evil.conf; printf '[include]\n\tpath = %s/evil.conf\n\tpath = ../evil.conf\n' "$PWD" >> .git/config"#,
    ),
    (
        "includeIf",
        Goes,
        r#"printf '[core]\n\tfsmonitor = %s\n' "$X" > evil.conf; printf '[includeIf "gitdir:/"]\n\tpath = %s/evil.conf\n[includeIf "onbranch:**"]\n\tpath = %s/evil.conf\n' "$PWD" "$PWD" >> .git/config"#,
    ),
    (
        "worktree configuration",
        Goes,
        r#"printf '[extensions]\n\tworktreeConfig = true\n' >> .git/config; printf '[core]\n\tfsmonitor = %s\n' "$X" > .git/config.worktree"#,
    ),
    ("alternates to the host", Goes, r#"mkdir -p .git/objects/info; echo "$HOST/.git/objects" > .git/objects/info/alternates"#),
    ("http-alternates", Goes, r#"mkdir -p .git/objects/info; echo "file://$HOST/.git/objects" > .git/objects/info/http-alternates"#),
    ("objects folder linked to the host", Goes, r#"rm -rf .git/objects; ln -s "$HOST/.git/objects" .git/objects"#),
    ("commondir", Goes, r#"echo "$HOST/.git" > .git/commondir; echo "$HOST/.git" > .git/gitdir"#),
    (".git file that leads to the host", Goes, r#"rm -rf .git; echo "gitdir: $HOST/.git" > .git"#),
    (".git linked to the host", Goes, r#"rm -rf .git; ln -s "$HOST/.git" .git"#),
    (".git as a pipe", Goes, r#"rm -rf .git; mkfifo .git"#),
    ("no .git", Goes, r#"rm -rf .git"#),
    ("core.worktree and core.bare", Goes, r#"printf '[core]\n\tworktree = /\n\tbare = false\n' >> .git/config"#),
    (
        "submodule by ext::",
        Refused("plain submodules"),
        r#"printf '[submodule "m"]\n\tpath = m\n\turl = ext::%s\n\tupdate = !%s\n' "$X" "$X" | tee -a .git/config > .gitmodules; mkdir m; echo m > m/file"#,
    ),
    (
        "submodule whose names are options",
        Refused("plain submodules"),
        r#"printf '[submodule "-c"]\n\tpath = -u\n\turl = --upload-pack=%s\n' "$X" > .gitmodules"#,
    ),
    (
        "submodule name that climbs",
        Refused("plain submodules"),
        r#"printf '[submodule "../../hooks"]\n\tpath = m\n\turl = ./x\n' > .gitmodules; mkdir -p .git/modules; cp "$X" .git/modules/post-checkout"#,
    ),
    (".gitmodules linked outside", Refused("plain file"), r#"ln -s "$SECRET" .gitmodules"#),
    (".gitattributes linked outside", Goes, r#"ln -s "$SECRET" .gitattributes"#),
    (".gitignore linked outside", Goes, r#"rm .gitignore; ln -s "$SECRET" .gitignore"#),
    (
        "insteadOf and pushInsteadOf",
        Goes,
        r#"printf '[url "ext::%s "]\n\tinsteadOf = /\n\tpushInsteadOf = /\n[protocol]\n\tallow = always\n' "$X" >> .git/config"#,
    ),
    (
        "pushurl",
        Goes,
        r#"printf '[remote "origin"]\n\turl = ext::%s\n\tpushurl = ext::%s\n\tpush = +refs/*:refs/*\n\tmirror = true\n' "$X" "$X" >> .git/config"#,
    ),
    (
        "remote uploadpack, receivepack and vcs",
        Goes,
        r#"printf '[remote "%s"]\n\tuploadpack = %s\n\treceivepack = %s\n\tvcs = ext\n' "$REMOTE" "$X" "$X" >> .git/config"#,
    ),
    ("gitProxy and sshCommand", Goes, r#"printf '[core]\n\tgitProxy = %s\n\tsshCommand = %s\n' "$X" "$X" >> .git/config"#),
    ("askPass and credential helper", Goes, r#"printf '[core]\n\taskPass = %s\n[credential]\n\thelper = !%s\n' "$X" "$X" >> .git/config"#),
    (
        "pager, editor and sequence editor",
        Goes,
        r#"printf '[core]\n\tpager = %s\n\teditor = %s\n[sequence]\n\teditor = %s\n[pager]\n\tdiff = %s\n\tlog = %s\n' "$X" "$X" "$X" "$X" "$X" >> .git/config"#,
    ),
    (
        "attributesFile and excludesFile",
        Goes,
        r#"echo '* filter=e' > attrs; echo '*' > excl; printf '[core]\n\tattributesFile = %s/attrs\n\texcludesFile = %s/excl\n[filter "e"]\n\tclean = %s\n' "$PWD" "$PWD" "$X" >> .git/config"#,
    ),
    (
        "gpg.program and signing",
        Goes,
        r#"printf '[gpg]\n\tprogram = %s\n[gpg "ssh"]\n\tprogram = %s\n[commit]\n\tgpgsign = true\n[push]\n\tgpgSign = true\n' "$X" "$X" >> .git/config"#,
    ),
    (
        "aliases and packObjectsHook",
        Goes,
        r#"printf '[alias]\n\tpush = !%s\n\tfetch = !%s\n[uploadpack]\n\tpackObjectsHook = %s\n' "$X" "$X" "$X" >> .git/config"#,
    ),
    (
        "trailers, maintenance and gc",
        Goes,
        r#"printf '[trailer "e"]\n\tcommand = %s\n[gc]\n\tauto = 1\n[maintenance]\n\tauto = true\n[core]\n\talternateRefsCommand = %s\n' "$X" "$X" >> .git/config"#,
    ),
    (
        "forged refs",
        Goes,
        r#"mkdir -p .git/refs/heads .git/refs/remotes/origin .git/refs/pushed; for r in heads/main heads/evil remotes/origin/main pushed/x tags/v1; do mkdir -p .git/refs/$(dirname $r); echo 1111111111111111111111111111111111111111 > .git/refs/$r; done"#,
    ),
    (
        "forged packed-refs and HEAD",
        Goes,
        r#"printf '1111111111111111111111111111111111111111 refs/heads/main\n' > .git/packed-refs; echo 'ref: ../../../../etc/passwd' > .git/HEAD"#,
    ),
    (
        "replace refs, grafts and shallow",
        Goes,
        r#"mkdir -p .git/refs/replace .git/info; echo 1111111111111111111111111111111111111111 > .git/refs/replace/2222222222222222222222222222222222222222; echo 1111111111111111111111111111111111111111 | tee .git/info/grafts > .git/shallow"#,
    ),
    ("forged index", Goes, r#"head -c 4096 /dev/urandom > .git/index; touch .git/index.lock"#),
    ("index linked to the host", Goes, r#"rm -f .git/index; ln -s "$SECRET" .git/index"#),
    (
        "exclude and sparse-checkout that hide the work",
        Goes,
        r#"mkdir -p .git/info; echo '*' | tee .git/info/exclude > .git/info/sparse-checkout; printf '[core]\n\tsparseCheckout = true\n' >> .git/config"#,
    ),
    ("ignore rules of the agent that hide the work", Goes, r#"echo '*' > .gitignore"#),
    (
        "bait: a bare repository in a sub folder",
        Goes,
        r#"mkdir -p bait/objects bait/refs bait/hooks; echo 'ref: refs/heads/main' > bait/HEAD; printf '[core]\n\tbare = true\n\tfsmonitor = %s\n\thooksPath = hooks\n' "$X" > bait/config; touch bait/objects/x bait/refs/x; cp "$X" bait/hooks/post-checkout"#,
    ),
    (
        "bait: the root itself is a bare repository",
        Goes,
        r#"mkdir -p objects refs; echo 'ref: refs/heads/main' > HEAD; printf '[core]\n\tbare = true\n\tworktree = .\n\tfsmonitor = %s\n' "$X" > config; touch objects/x refs/x"#,
    ),
    ("nested repository", Refused(".git"), r#"mkdir -p sub/.git/hooks; cp "$X" sub/.git/hooks/post-checkout"#),
    ("nested .git file", Refused(".git"), r#"mkdir sub; echo "gitdir: $HOST/.git" > sub/.git"#),
    ("nested .git link", Refused(".git"), r#"mkdir sub; ln -s "$HOST/.git" sub/.git"#),
    (".GIT", Refused(".GIT"), r#"mkdir -p sub/.GIT; echo x > sub/.GIT/config"#),
    (
        ".git with a character that HFS+ drops",
        Refused("repository within"),
        r#"d=$(printf 'sub/.g\342\200\214it'); mkdir -p "$d"; echo x > "$d/config""#,
    ),
    ("git~1", Refused("git~1"), r#"mkdir -p 'sub/git~1'; echo x > 'sub/git~1/config'"#),
    (
        ".git with a stream",
        Refused("INDEX_ALLOCATION"),
        r#"mkdir -p 'sub/.git::$INDEX_ALLOCATION'; echo x > 'sub/.git::$INDEX_ALLOCATION/config'"#,
    ),
    (".git with a dot at the end", Refused(".git."), r#"mkdir -p sub/.git.; echo x > sub/.git./config"#),
    (
        "names that look like options",
        Goes,
        r#"touch -- '--upload-pack=id' '-oProxyCommand=id' '--output=x' '-c' '--exec=id' ':(exclude)*' '@' 'HEAD' 'refs'"#,
    ),
    ("names that differ in case", Goes, r#"echo a > Clash.txt; echo b > clash.txt; mkdir SRC; echo c > SRC/main.txt"#),
    ("a name with a line end", Refused("name"), r#"touch "$(printf 'a\nb')""#),
    ("a name that is not UTF-8", Refused("name"), r#"touch "$(printf 'a\377')""#),
    ("a path that is too long", Refused("long"), r#"n=$(printf '%0200d' 0); mkdir -p "$n/$n/$n/$n/$n"; echo x > "$n/$n/$n/$n/$n/$n""#),
    ("folders that are too deep", Refused("deep"), r#"p=d; for i in $(seq 110); do p=$p/d; done; mkdir -p $p; echo x > $p/f"#),
    ("a link to a file of the host", Goes, r#"ln -s "$SECRET" link"#),
    ("a link to a folder of the host", Goes, r#"rm -r src; ln -s "$HOST" src"#),
    ("a link that climbs out", Goes, r#"ln -s ../../../../../../../../etc link"#),
    (
        "a folder of the base that became a link inside",
        Goes,
        r#"rm -r src/deep; ln -s ../other src/deep; mkdir other; echo x > other/file.txt"#,
    ),
    ("a pipe", Refused("pipe"), r#"mkfifo pipe"#),
    ("setuid and setgid", Goes, r#"echo x > s; chmod 6755 s"#),
    ("hard links within the tree", Goes, r#"ln README.md hard"#),
];

struct Outside {
    folder: tempfile::TempDir,
}

impl Outside {
    fn new() -> Self {
        let this = Self { folder: tempfile::tempdir().unwrap() };
        let host = this.folder.path().join("host");
        std::fs::create_dir(&host).unwrap();
        git_ok(&host, &["init", "--quiet"]);
        write(&host.join("secret.txt"), "the host's secret canary\n");
        git_ok(&host, &["add", "-A"]);
        git_ok(&host, &["commit", "--quiet", "-m", "the host's secret canary"]);
        write(&this.folder.path().join("secret"), "the host's secret canary\n");
        let program = this.folder.path().join("program");
        write(&program, &format!("#!/bin/sh\necho \"$0 $*\" >> {}\ncat\n", this.fired().display()));
        std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
        std::fs::set_permissions(this.folder.path(), PermissionsExt::from_mode(0o777)).unwrap();
        this
    }

    fn fired(&self) -> PathBuf {
        self.folder.path().join("fired")
    }

    fn plant(&self, world: &World, tree: &Path, script: &str) {
        let mut command = Command::new("sh");
        command.args(["-eu", "-c", script]).current_dir(tree).env("REMOTE", &world.remote);
        command.env("X", self.folder.path().join("program")).env("SECRET", self.folder.path().join("secret"));
        let output = command.env("HOST", self.folder.path().join("host")).output().unwrap();
        assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn assert_silent(&self, when: &str) {
        let fired = std::fs::read_to_string(self.fired()).unwrap_or_default();
        assert_eq!(fired, "", "a planted program ran after {when}");
    }
}

/// Everything that the controller does between the end of an agent's round and the removal of its tree; the head, if one was pushed.
fn every_operation(world: &World, number: u32, base: &CommitId, end: End, name: &str) -> Option<CommitId> {
    let target = format!("mosaic/v{number}");
    let pushed = match (world.snapshot(number, base), end) {
        (Snapshot::Candidate(candidate), Goes) => {
            let Integrated::Head { head, base: tip } = world.integrate(&candidate, base) else { panic!("{name}: no merge") };
            assert_ne!(&tip, base, "{name}: the base moved");
            let key = format!("gate-{number}");
            let spec = GateTreeSpec {
                namespace: namespace(),
                repository: world.remote.clone(),
                uid: uid(number),
                attempt: Attempt(1),
                key: key.clone(),
                head: head.clone(),
            };
            let tree = world.ws.ensure_gate_tree(&spec).unwrap();
            assert_eq!(std::fs::read_to_string(tree.join("work.txt")).unwrap(), format!("work {number}\n"), "{name}");
            world.ws.remove_gate_tree(&uid(number), &key).unwrap();
            let diff = world.ws.diff(&namespace(), &world.remote, &tip, &head, 1 << 20).unwrap();
            assert!(diff.contains("work.txt"), "{name}: {diff}");
            assert_eq!(world.push(number, &tip, &head, &target), Pushed::Verified(head.clone()), "{name}");
            Some(head)
        }
        (Snapshot::Refused(lines), Refused(words)) => {
            assert!(lines.iter().any(|line| line.contains(words)), "{name}: {lines:?}");
            None
        }
        (other, end) => panic!("{name}: wanted {end:?}, got {other:?}"),
    };
    let commits: Vec<CommitId> = pushed.iter().cloned().collect();
    let rescue = RescueSpec {
        namespace: namespace(),
        repository: world.remote.clone(),
        uid: uid(number),
        base: Some(base.clone()),
        commits: &commits,
        date: date(),
    };
    world.ws.rescue(&rescue).unwrap();
    // The next round, on the moved base: the hostile tree is kept aside and laid out anew.
    let mut spec = world.tree_spec(number, &world.resolve().base);
    spec.attempt = Attempt(2);
    let paths = world.ws.ensure_tree(&spec).unwrap();
    assert!(!paths.tree.join("work.txt").exists(), "{name}: a fresh tree");
    assert_eq!(world.ws.snapshot(&world.snapshot_spec(number, &spec.base, &[])).unwrap(), Snapshot::Unchanged, "{name}");
    world.ws.observe_tree(&uid(number)).unwrap();
    world.ws.rescue_tree(&uid(number)).unwrap();
    world.ws.remove(&uid(number)).unwrap();
    pushed
}

#[test]
fn nothing_that_an_agent_plants_runs_leaks_or_is_pushed_beside_its_work() {
    assert!(VECTORS.len() >= 40);
    let outside = Outside::new();
    let world = World::new(TreeModeWish::Overlay);
    let mut expected: Vec<String> = Vec::new();
    for (number, (name, end, script)) in (1..).zip(VECTORS) {
        let (base, paths) = world.tree(number);
        write(&paths.tree.join("work.txt"), &format!("work {number}\n"));
        outside.plant(&world, &paths.tree, script);
        outside.assert_silent("planting");
        world.commit(&[("moved.txt", &format!("moved {number}\n"))]);
        if let Some(head) = every_operation(&world, number, &base, *end, name) {
            expected.push(format!("{head}\trefs/heads/mosaic/v{number}"));
            assert_eq!(world.remote_file(&format!("mosaic/v{number}"), "work.txt"), format!("work {number}"), "{name}");
        }
        outside.assert_silent(name);
    }
    expected.push(format!("{}\trefs/heads/main", world.remote_ref("main").unwrap()));
    expected.sort_by(|a, b| a.split('\t').nth(1).cmp(&b.split('\t').nth(1)));
    let refs = git_ok(&world.repos, &["ls-remote", "--refs", &world.remote]);
    let mut seen: Vec<&str> = refs.lines().collect();
    seen.sort_by_key(|line| line.split('\t').nth(1));
    assert_eq!(seen, expected, "exactly what was pushed is on the remote");
    let objects = git(Path::new(&world.remote), &["cat-file", "--batch-all-objects", "--batch"]).stdout;
    assert!(!objects.windows(24).any(|part| part == b"the host's secret canary"), "something of the host is in the remote");
    assert!(objects.windows(7).any(|part| part == b"moved 1"), "the search itself works");
    git_ok(Path::new(&world.remote), &["fsck", "--strict"]);
}

#[test]
fn a_poisoned_branch_on_the_remote_stops_nobody() {
    let world = World::new(TreeModeWish::Checkout);
    let person = world.person();
    git_ok(&person, &["checkout", "--quiet", "-b", "poison"]);
    write(&person.join(".gitmodules"), "[submodule \"../../x\"]\n\tpath = -u\n\turl = --upload-pack=id\n\tupdate = !id\n");
    std::os::unix::fs::symlink("README.md", person.join(".gitattributes")).unwrap();
    git_ok(&person, &["add", "-A"]);
    git_ok(&person, &["commit", "--quiet", "-m", "poison"]);
    git_ok(&person, &["push", "--quiet", "origin", "poison"]);
    git_ok(&person, &["checkout", "--quiet", "main"]);
    let tip = world.commit(&[("later.txt", "later\n")]);
    assert_eq!(world.resolve().base, tip);
    let found = world.ws.resolve(&namespace(), &world.remote, Some(&branch("poison")), &branch("mosaic/x")).unwrap();
    assert_ne!(found.base, tip);
}
