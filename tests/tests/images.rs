//! Images between files, names and nodes.

use std::fs;

use orch_tests::Lab;

fn ids(lab: &Lab, args: &[&str]) -> Vec<String> {
    let text = lab.orch(&[&["image", "ls", "-q", "--no-trunc"][..], args].concat()).ok();
    text.lines().map(str::to_owned).collect()
}

#[test]
fn images_travel_as_files() {
    let lab = Lab::up("images", 2, 1);
    lab.import("busybox", "busybox", &["CMD [\"echo\", \"from the image\"]"]);
    let id = ids(&lab, &["busybox"]);
    let _ = lab.orch(&["tag", "busybox", "reg.example:5000/team/box:2"]).ok();
    assert_eq!(ids(&lab, &["reg.example:5000/team/box"]), id);
    for (args, count) in [
        (&["b*"][..], 1),
        (&["*:2"], 0),
        (&["*/*/*:2"], 1),
        (&["--filter", "reference=*:latest"], 1),
        (&["--filter", "since=busybox"], 0),
        (&["--filter", "label=none"], 0),
        (&["--filter", "dangling=false"], 1),
    ] {
        assert_eq!(ids(&lab, args).len(), count, "{args:?}");
    }
    for (filter, said) in
        [("dangling=maybe", "dangling is one of"), ("before=nope", "nope"), ("reference=[", "invalid pattern")]
    {
        let refused = lab.orch(&["images", "--filter", filter]).refused();
        assert!(refused.contains(said), "{filter}: {refused}");
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("box.tar");
    let file = file.to_str().expect("utf-8 path");
    let _ = lab.orch(&["save", "-o", file, "busybox", "reg.example:5000/team/box:2"]).ok();
    let _ = lab.orch(&["image", "rm", "busybox", "reg.example:5000/team/box:2"]).ok();
    assert_eq!(ids(&lab, &[]), [] as [&str; 0]);

    // Packed, through a pipe, on another node: the same image with the same names.
    let packed = std::process::Command::new("gzip").args(["-1", "-c", file]).output().expect("gzip").stdout;
    let said = lab.exec_with_input("n2", &["orch", "load", "-q"], &packed).ok();
    assert_eq!(said, "Loaded image: busybox:latest\nLoaded image: reg.example:5000/team/box:2\n");
    let there = lab.orch_on("n2", &["image", "ls", "-q", "--no-trunc"]).ok();
    assert!(there.lines().all(|line| line == id[0]), "{there} {id:?}");
    assert_eq!(lab.orch_on("n2", &["run", "--rm", "busybox"]).ok(), "from the image\n");
    // The cluster knows the name: n1 gets it from there.
    let create =
        ["service", "create", "-d", "--name", "s", "--constraint", "node.hostname==n1", "busybox", "sleep", "999"];
    let _ = lab.orch(&create).ok();
    lab.wait_replicas("s", "1/1");

    let history = lab.orch(&["image", "history", "--format", "{{.Size}} {{.Comment}}", "busybox"]).ok();
    assert!(history.contains("Imported from -"), "{history}");
    let tar = orch_tests::image("busybox");
    let tar = tar.to_str().expect("utf-8 path");
    let _ = lab.orch(&["image", "import", "--replace", "--change", "LABEL other=1", tar, "busybox"]).ok();
    let other = ids(&lab, &["busybox"]);
    let said = lab.orch(&["load", "-i", file]).ok();
    let words =
        format!("The image busybox:latest already exists, renaming the old one with ID {} to empty string\n", other[0]);
    assert!(said.contains(&words), "{said} {other:?}");
    assert_eq!(ids(&lab, &["busybox"]), id);

    let broken = folder.path().join("broken.tar");
    fs::write(&broken, vec![7_u8; 4096]).expect("a file");
    let said = lab.orch(&["load", "-i", broken.to_str().expect("utf-8 path")]).refused();
    assert!(said.starts_with("load: "), "{said}");
}

#[test]
fn what_nothing_uses_can_go() {
    let lab = Lab::up("image-prune", 1, 1);
    lab.import("busybox", "busybox", &["LABEL n=1"]);
    let old = ids(&lab, &["busybox"]);
    let tar = orch_tests::image("busybox");
    let tar = tar.to_str().expect("utf-8 path");
    let _ = lab.orch(&["image", "import", "--replace", "--change", "LABEL n=2", tar, "busybox"]).ok();
    assert_eq!(ids(&lab, &["--filter", "dangling=true"]), old);
    let _ = lab.orch(&["run", "-d", "--name", "user", &old[0], "sleep", "1000"]).ok();
    assert!(lab.orch(&["image", "prune"]).refused().contains("add --force"));
    let kept = lab.orch(&["image", "prune", "-f"]).ok();
    assert_eq!(kept, "Total reclaimed space: 0B\n", "an image in use is gone");
    // The same archive once more is the same image; its name means another one now.
    let _ = lab.orch(&["image", "import", "--change", "LABEL n=1", tar, "busybox"]).refused();
    assert_eq!(ids(&lab, &["--filter", "dangling=true"]), old, "a refused import took an image in use along");
    let _ = lab.orch(&["rm", "-f", "user"]).ok();
    let pruned = lab.orch(&["image", "prune", "-f"]).ok();
    assert!(pruned.starts_with("Deleted Images:\n"), "{pruned}");
    assert_eq!(ids(&lab, &["--filter", "dangling=true"]), [] as [&str; 0]);
    assert_eq!(ids(&lab, &[]).len(), 1);
}

#[test]
fn what_cannot_be_done_is_said() {
    let lab = Lab::up("image-words", 1, 1);
    for (args, said) in [
        (&["push", "nosuch"][..], "An image does not exist locally with the tag: nosuch:latest"),
        (&["tag", "nosuch", "x"], "No such image: nosuch"),
        (&["save", "-o", "/tmp/never", "nosuch"], "No such image: nosuch"),
        (&["build", "-t", "x", "/nowhere"], "/nowhere is not a folder"),
    ] {
        let outcome = lab.orch(args).refused();
        assert!(outcome.contains(said), "{args:?}: {outcome}");
    }
}

/// By buildah, from an image that only the cluster has.
#[test]
fn a_dockerfile_is_built() {
    let lab = Lab::up("image-build", 1, 1);
    lab.import("team/base:1", "busybox", &[]);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let dockerfile = "ARG BASE=nosuch\nFROM ${BASE}:1\nARG WHO=nobody\nCOPY word /word\nRUN echo \"$(cat /word) $WHO\" > /said\n\
                      HEALTHCHECK --interval=7s CMD true\nCMD [\"cat\", \"/said\"]\n";
    fs::write(folder.path().join("Dockerfile"), dockerfile).expect("a file");
    fs::write(folder.path().join("word"), "hello").expect("a file");
    let context = folder.path().to_str().expect("utf-8 path");
    let flags = ["build", "-t", "built:2", "-t", "also", "--build-arg", "BASE=team/base", "--build-arg", "WHO=you"];
    let said = lab.orch(&[&flags[..], &[context]].concat()).ok();
    assert!(said.ends_with("Loaded image: built:2\nLoaded image: also\n"), "{said}");
    assert_eq!(lab.orch(&["run", "--rm", "also"]).ok(), "hello you\n");
    let health = lab.orch(&["image", "inspect", "--format", "{{json .Config.Healthcheck}}", "built:2"]).ok();
    assert!(health.contains("7000000000"), "{health}");
    let names = lab.orch(&["image", "ls", "--format", "{{.Repository}}:{{.Tag}}"]).ok();
    assert!(!names.contains("localhost/"), "{names}");
    let broken = lab.orch(&["build", "-t", "x", "--file", "/nowhere", context]).refused();
    assert!(broken.contains("buildah failed"), "{broken}");
    let id_file = folder.path().join("id");
    let iid = ["--iidfile", id_file.to_str().expect("utf-8 path")];
    let quiet = [&["build", "-q", "--build-arg", "BASE=team/base"], &iid[..], &[context]].concat();
    let id = lab.orch(&quiet).ok();
    assert_eq!(id.trim(), fs::read_to_string(&id_file).expect("the image's ID"));
    assert_eq!(lab.orch(&["run", "--rm", id.trim()]).ok(), "hello nobody\n");
    let broken = lab.orch(&[&["build", "-q"], &iid[..], &[context]].concat()).refused();
    assert!(broken.contains("nosuch"), "a quiet build does not say why it fails: {broken}");
    assert!(!id_file.exists(), "a failed build leaves the ID of an earlier one");
    let text = b"FROM team/base:1\nRUN echo stdin > /said\nCMD [\"cat\", \"/said\"]\n";
    let id = lab.exec_with_input("n1", &["orch", "build", "-q", "-"], text).ok();
    assert_eq!(lab.orch(&["run", "--rm", id.trim()]).ok(), "stdin\n");
}
