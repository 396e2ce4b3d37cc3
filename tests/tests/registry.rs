//! Real registries: one that runs as a container of the cluster itself, with and without a login, behind a token server, with a
//! certificate of its own authority, as a mirror.

use std::{fs, path::Path, process::Child};

use orch_tests::{Lab, Outcome, eventually, fixture};

const USER: &str = "alice";
const PASSWORD: &str = "pa:ss word";
/// Of `PASSWORD`, by bcrypt, as registries want it.
const HTPASSWD: &str = "alice:$2b$04$JnmkqP3dRbuMRKinhSa2quSB1aNqjlPztKLKUfmTq.fjC5080iISq\n";

/// A process on a host of the lab, ended with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Replaces keys of a node's configuration.
fn configure(lab: &Lab, node: &str, lines: &str) {
    let script = "f=/etc/orch/orch.toml; { cat; grep -v -e ^registry-mirrors -e ^insecure-registries -e ^image-gc $f; } \
                  > /run/orch/new.toml; cat /run/orch/new.toml > $f";
    let _ = lab.exec_with_input(node, &["sh", "-c", script], lines.as_bytes()).ok();
}

/// `orch ARGS` with credential files of the test's own.
fn with_login(lab: &Lab, folder: &Path, args: &[&str]) -> Outcome {
    let script = "export DOCKER_CONFIG=\"$0\" PATH=\"$0:$PATH\"; exec orch \"$@\"";
    let folder = folder.to_str().expect("utf-8 path");
    lab.exec("n1", &[&["sh", "-c", script, folder], args].concat())
}

/// The tutorial's registry: an image of the cluster, in a container of n1, with a volume.
fn registry_container(lab: &Lab, name: &str, port: u16, options: &[&str]) -> String {
    let publish = format!("{port}:5000");
    let volume = format!("{name}:/var/lib/registry");
    let run = ["run", "-d", "--restart", "always", "--name", name, "-p", &publish, "-v", &volume];
    let _ = lab.orch(&[&run[..], options, &["registry:2"]].concat()).ok();
    let address = format!("{}:{port}", lab.address("n1"));
    let url = format!("http://{address}/v2/");
    eventually("the registry answers", || {
        let code = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", &url];
        let said = lab.exec("n2", &code).result()?;
        if ["200", "401"].contains(&said.as_str()) { Ok(()) } else { Err(said) }
    });
    address
}

fn import_images(lab: &Lab) {
    let serve = "CMD [\"docker-registry\", \"serve\", \"/etc/docker/registry/config.yml\"]";
    lab.import("registry:2", "registry", &[serve, "EXPOSE 5000"]);
    lab.import("nginx", "nginx", &["CMD [\"nginx\"]", "EXPOSE 80"]);
}

/// Pushes local `source` as `target` and forgets the name again: from then on only the registry knows it.
fn publish(lab: &Lab, folder: &Path, source: &str, target: &str) {
    let _ = lab.orch(&["tag", source, target]).ok();
    let said = with_login(lab, folder, &["push", target]).ok();
    assert!(said.contains("digest: sha256:"), "{said}");
    let _ = lab.orch(&["image", "rm", target]).ok();
}

fn digest_of_service(lab: &Lab, service: &str) -> String {
    let format = "{{.Spec.TaskTemplate.ContainerSpec.Image}}";
    let image = lab.orch(&["service", "inspect", "--format", format, service]).ok();
    image.trim().rsplit_once('@').map(|(_, digest)| digest.to_owned()).unwrap_or_else(|| image.trim().to_owned())
}

#[test]
fn a_registry_in_a_container_serves_the_cluster() {
    let lab = Lab::up("registry", 2, 1);
    let folder = tempfile::tempdir().expect("a folder");
    import_images(&lab);
    let address = registry_container(&lab, "reg", 5000, &[]);
    let web = format!("{address}/team/web:1");

    // Not listed as insecure: refused, with what to do; listed: read anew, without a restart.
    let _ = lab.orch(&["tag", "nginx", &web]).ok();
    let refused = lab.orch(&["push", &web]).refused();
    assert!(refused.contains("insecure-registries"), "{refused}");
    let insecure = format!("insecure-registries = [\"{address}\"]\n");
    ["n1", "n2"].iter().for_each(|node| configure(&lab, node, &insecure));
    publish(&lab, folder.path(), "nginx", &web);

    // What the tag means is found out once; all nodes run that.
    let create = ["service", "create", "-d", "--name", "web", "--replicas", "2", "--replicas-max-per-node", "1", &web];
    let said = lab.orch(&create);
    assert_eq!((said.code, said.stderr.as_str()), (0, ""), "{said:?}");
    lab.wait_replicas("web", "2/2");
    let first = digest_of_service(&lab, "web");
    let list = [
        "image",
        "ls",
        "--digests",
        "--format",
        "{{.Repository}}:{{.Tag}} {{.Digest}}",
        &format!("{address}/team/web"),
    ];
    assert_eq!(lab.orch_on("n2", &list).ok(), format!("{web} {first}\n"));

    // The tag moves: scaling does not care, naming the image again does.
    let tar = orch_tests::image("nginx");
    let change = ["image", "import", "--change", "CMD [\"nginx\"]", "--change", "LABEL n=2", "second"];
    let _ = lab.orch(&[&change[..], &[tar.to_str().expect("utf-8")]].concat()).ok();
    publish(&lab, folder.path(), "second", &web);
    let _ = lab.orch(&["service", "update", "-d", "--replicas-max-per-node", "2", "--replicas", "4", "web"]).ok();
    lab.wait_replicas("web", "4/4");
    assert_eq!(digest_of_service(&lab, "web"), first);
    let _ = lab.orch(&["service", "update", "--image", &web, "web"]).ok();
    let second = digest_of_service(&lab, "web");
    assert_ne!(second, first);
    lab.wait_replicas("web", "4/4");

    stacks_ask_what_a_tag_means_as_they_are_told(&lab, folder.path(), &web);

    // By digest.
    let by_digest = format!("{address}/team/web@{first}");
    let _ = lab.orch_on("n2", &["image", "rm", "-f", &first]);
    let said = lab.orch_on("n2", &["pull", &by_digest]).ok();
    assert!(said.contains(&format!("Digest: {first}")), "{said}");
    let shown = lab.orch_on("n2", &list).ok();
    assert!(shown.contains(&first), "{shown}");

    // A registry that is gone: the nodes that have the image give it to the others.
    let _ = lab.orch(&["image", "rm", "-f", &second]);
    let _ = lab.orch(&["rm", "-f", "reg"]).ok();
    let gone = lab.orch(&["pull", &web]).refused();
    assert!(gone.contains(&address), "{gone}");
    let from_peer = ["service", "create", "-d", "--name", "peer", "--constraint", "node.hostname==n2", &by_digest];
    let _ = lab.orch(&from_peer).ok();
    lab.wait_replicas("peer", "1/1");
    let _ = lab.orch(&["image", "rm", "-f", &first]);
    let move_it = [
        "service",
        "update",
        "-d",
        "--constraint-rm",
        "node.hostname==n2",
        "--constraint-add",
        "node.hostname==n1",
        "peer",
    ];
    let _ = lab.orch(&move_it).ok();
    eventually("n1 has the image from n2", || {
        let tasks = lab.list(&["service", "ps", "-f", "desired-state=running", "peer"])?;
        let there = tasks
            .iter()
            .any(|t| t["Node"] == "n1" && t["CurrentState"].as_str().is_some_and(|s| s.starts_with("Running")));
        if there { Ok(()) } else { Err(format!("{tasks:?}")) }
    });
}

/// `stack deploy --resolve-image`, while the tag moves.
fn stacks_ask_what_a_tag_means_as_they_are_told(lab: &Lab, folder: &Path, web: &str) {
    let file = folder.join("stack.yml");
    fs::write(&file, format!("services:\n  web:\n    image: {web}\n    stop_grace_period: 0s\n")).expect("a file");
    let file = file.to_str().expect("utf-8 path");
    let deploy = |stack: &str, when: &[&str]| {
        let command = ["stack", "deploy", "--detach=false", "-q", "-c", file];
        let _ = lab.orch(&[&command[..], when, &[stack]].concat()).ok();
        digest_of_service(lab, &format!("{stack}_web"))
    };
    let asked = deploy("tags", &[]);
    assert!(asked.starts_with("sha256:"), "{asked}");
    assert_eq!(deploy("unasked", &["--resolve-image", "never"]), web, "nobody asked what it means");

    let tar = orch_tests::image("nginx");
    let change = ["image", "import", "--change", "CMD [\"nginx\"]", "--change", "LABEL n=3", "third"];
    let _ = lab.orch(&[&change[..], &[tar.to_str().expect("utf-8")]].concat()).ok();
    publish(lab, folder, "third", web);
    for when in ["changed", "never"] {
        assert_eq!(deploy("tags", &["--resolve-image", when]), asked, "{when}: the name is the same");
    }
    assert_ne!(deploy("tags", &["--resolve-image", "always"]), asked);
    let _ = lab.orch(&["stack", "rm", "--wait", "tags", "unasked"]).ok();
}

#[test]
fn registries_that_want_a_login_get_it() {
    let lab = Lab::up("registry-login", 2, 1);
    let folder = tempfile::tempdir().expect("a folder");
    let config = folder.path().join("config.json");
    let read =
        || serde_json::from_str::<serde_json::Value>(&fs::read_to_string(&config).expect("a file")).expect("JSON");
    import_images(&lab);
    let passwords = folder.path().join("htpasswd");
    fs::write(&passwords, HTPASSWD).expect("a file");
    let mount = format!("{}:/htpasswd:ro", passwords.display());
    let auth = ["-v", &mount, "-e", "REGISTRY_AUTH_HTPASSWD_REALM=test", "-e", "REGISTRY_AUTH_HTPASSWD_PATH=/htpasswd"];
    let address = registry_container(&lab, "reg", 5000, &auth);
    let insecure = format!("insecure-registries = [\"{address}\", \"{}:5001\"]\n", lab.address("client"));
    ["n1", "n2"].iter().for_each(|node| configure(&lab, node, &insecure));
    let web = format!("{address}/team/web:1");
    let _ = lab.orch(&["tag", "nginx", &web]).ok();

    let denied = with_login(&lab, folder.path(), &["push", &web]).refused();
    assert!(denied.contains("denied: requested access to the resource is denied"), "{denied}");
    let wrong = with_login(&lab, folder.path(), &["login", "-u", USER, "-p", "wrong", &address]).refused();
    assert!(wrong.contains("incorrect username or password"), "{wrong}");
    let empty = with_login(&lab, folder.path(), &["login", "-u", USER, "-p", "", &address]).refused();
    assert!(empty.contains("Password Required"), "{empty}");
    assert!(!config.exists());
    // What Docker's client keeps there stays.
    fs::write(&config, "{\"HttpHeaders\": {\"X\": \"y\"}}").expect("a file");
    let said = with_login(&lab, folder.path(), &["login", "-u", USER, "-p", PASSWORD, &address]).ok();
    assert!(said.ends_with("Login Succeeded\n"), "{said}");
    assert_eq!((read()["HttpHeaders"]["X"].as_str(), read()["auths"][&address]["auth"].is_string()), (Some("y"), true));
    publish(&lab, folder.path(), "nginx", &web);

    // Without the flag, other nodes are strangers; with it they are not, and nobody gets the password back.
    // By its tag: what the digest names, a node that has it would give to the other.
    let n2 = [
        "service",
        "create",
        "-d",
        "--no-resolve-image",
        "--restart-max-attempts",
        "1",
        "--constraint",
        "node.hostname==n2",
    ];
    let bare = with_login(&lab, folder.path(), &[&n2[..], &["--name", "bare", &web]].concat());
    assert_eq!(bare.code, 0, "{bare:?}");
    eventually("a stranger is refused", || {
        let tasks = lab.orch(&["service", "ps", "--no-trunc", "bare"]).ok();
        if tasks.contains("asks for a login") { Ok(()) } else { Err(tasks) }
    });
    let _ =
        with_login(&lab, folder.path(), &[&n2[..], &["--with-registry-auth", "--name", "known", &web]].concat()).ok();
    lab.wait_replicas("known", "1/1");
    assert_eq!(lab.orch(&["secret", "ls", "-q"]).ok(), "");
    let told: String = ["service", "secret"]
        .iter()
        .map(|kind| {
            let ids = lab.orch(&[kind, "ls", "-q", "--filter", "label=orch.registry-login"]).stdout;
            let ids: Vec<&str> = ids.lines().collect();
            let names = if *kind == "service" { vec!["known"] } else { ids };
            lab.orch(&[&[*kind, "inspect"][..], &names].concat()).ok()
        })
        .collect();
    assert!(told.contains("registry-login-known"), "{told}");
    assert!(!told.contains("pa:ss") && !told.contains("cGE6c3M"), "{told}");
    // Another login for the same service: the old one goes; with the service goes the last.
    let _ = with_login(&lab, folder.path(), &["service", "update", "-d", "--with-registry-auth", "known"]).ok();
    let logins = || lab.orch(&["secret", "ls", "-q", "--filter", "label=orch.registry-login"]).ok();
    assert_eq!(logins().lines().count(), 1);
    assert_eq!(
        lab.list(&["service", "ps", "known"]).expect("a list").len(),
        1,
        "an update of the login restarts nothing"
    );
    let _ = lab.orch(&["service", "rm", "known", "bare"]).ok();
    eventually("the login is gone with its service", || if logins().is_empty() { Ok(()) } else { Err(logins()) });
    a_stack_takes_its_login_along(&lab, folder.path(), &web);

    // A credential helper instead of the file.
    let helper = folder.path().join("docker-credential-test");
    let script = format!("#!/bin/sh\ncat >/dev/null\necho '{{\"Username\":\"{USER}\",\"Secret\":\"{PASSWORD}\"}}'\n");
    fs::write(&helper, script).expect("a file");
    fs::set_permissions(&helper, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("a mode");
    let _ = with_login(&lab, folder.path(), &["logout", &address]).ok();
    assert!(read()["auths"][&address].is_null());
    let stranger = with_login(&lab, folder.path(), &["pull", &web]).refused();
    assert!(stranger.contains("asks for a login"), "{stranger}");
    fs::write(&config, format!("{{\"credHelpers\": {{\"{address}\": \"test\"}}}}")).expect("a file");
    let said = with_login(&lab, folder.path(), &["pull", &web]).ok();
    assert!(said.ends_with(&format!("{web}\n")), "{said}");
    fs::remove_file(&config).expect("a file");
    token_server(&lab, folder.path(), &config);
}

/// Only with `--with-registry-auth`; the login goes with the stack.
fn a_stack_takes_its_login_along(lab: &Lab, folder: &Path, web: &str) {
    let file = folder.join("stack.yml");
    let place = "deploy: {placement: {constraints: [node.hostname == n2]}, restart_policy: {max_attempts: 1}}";
    fs::write(&file, format!("services:\n  web:\n    image: {web}\n    {place}\n")).expect("a file");
    let deploy = |stack: &str, more: &[&str]| {
        let command = ["stack", "deploy", "--resolve-image", "never", "-c", file.to_str().expect("utf-8 path")];
        let _ = with_login(lab, folder, &[&command[..], more, &[stack]].concat()).ok();
    };
    let logins = || lab.orch(&["secret", "ls", "-q", "--filter", "label=orch.registry-login"]).ok();
    // Its last task may still run there.
    eventually("the other node has it no more", || lab.orch_on("n2", &["image", "rm", "-f", web]).result());
    deploy("bare", &[]);
    eventually("a stranger is refused", || {
        let tasks = lab.orch(&["service", "ps", "--no-trunc", "bare_web"]).ok();
        if tasks.contains("asks for a login") { Ok(()) } else { Err(tasks) }
    });
    assert_eq!(logins(), "");
    deploy("known", &["--with-registry-auth"]);
    lab.wait_replicas("known_web", "1/1");
    assert_eq!(logins().lines().count(), 1);
    let _ = lab.orch(&["stack", "rm", "--wait", "bare", "known"]).ok();
    assert_eq!(logins(), "", "the login is gone with its stack");
}

/// A token server gives an identity token for the password, which is what is kept and used from then on.
fn token_server(lab: &Lab, folder: &Path, config: &Path) {
    let open = registry_container(lab, "open", 5002, &[]);
    let address = format!("{}:5001", lab.address("client"));
    let script = fixture("token-registry.py");
    let _server = Running(lab.spawn("client", &["python3", script.to_str().expect("utf-8"), &address, &open]));
    eventually("the token server listens", || {
        lab.exec("n1", &["curl", "-s", "-o", "/dev/null", &format!("http://{address}/v2/")]).result()
    });
    let web = format!("{address}/team/web:2");
    let _ = lab.orch(&["tag", "nginx", &web]).ok();
    let wrong = with_login(lab, folder, &["login", "-u", USER, "-p", "no", &address]).refused();
    assert!(wrong.contains("incorrect username or password"), "{wrong}");
    let said = with_login(lab, folder, &["login", "-u", USER, "-p", "wonder", &address]).ok();
    assert!(said.ends_with("Login Succeeded\n"), "{said}");
    let kept = fs::read_to_string(config).expect("a file");
    assert!(kept.contains("identity-of-alice") && !kept.contains("d29uZGVy"), "{kept}");
    publish(lab, folder, "nginx", &web);
    let _ = lab.orch(&["image", "rm", "-f", "nginx"]);
    let said = with_login(lab, folder, &["pull", &web]).ok();
    assert!(said.contains("2: Pulling from team/web\n"), "{said}");
    assert!(said.contains("Status: Downloaded newer image for"), "{said}");
    let again = with_login(lab, folder, &["pull", &web]).ok();
    assert!(again.contains("Status: Image is up to date for"), "{again}");
}

#[test]
fn certificates_of_their_own_and_mirrors() {
    let lab = Lab::up("registry-tls", 1, 1);
    lab.import("busybox", "busybox", &["CMD [\"echo\", \"from the mirror\"]"]);
    let folder = tempfile::tempdir().expect("a folder");
    let host = lab.address("client");
    let address = format!("{host}:5443");
    let path = |name: &str| folder.path().join(name).display().to_string();
    let openssl = |args: &[&str]| {
        let done = std::process::Command::new("openssl").args(args).output().expect("openssl");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    };
    let new = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"];
    openssl(&[&new[..], &["-subj", "/CN=Test CA", "-keyout", &path("ca.key"), "-out", &path("ca.crt")]].concat());
    let san = format!("subjectAltName=IP:{host}");
    let of_ca = [
        "-CA",
        &path("ca.crt"),
        "-CAkey",
        &path("ca.key"),
        "-addext",
        &san,
        "-addext",
        "basicConstraints=critical,CA:FALSE",
    ];
    let server = ["-subj", "/CN=registry", "-keyout", &path("tls.key"), "-out", &path("tls.crt")];
    openssl(&[&new[..], &of_ca, &server].concat());
    let text = format!(
        "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {address}\n  tls:\n    certificate: {}\n    key: {}\n",
        path("data"),
        path("tls.crt"),
        path("tls.key")
    );
    fs::write(path("config.yml"), text).expect("a file");
    let _registry = Running(lab.spawn("client", &["docker-registry", "serve", &path("config.yml")]));
    eventually("the registry answers", || {
        lab.exec("client", &["curl", "-s", "--cacert", &path("ca.crt"), &format!("https://{address}/v2/")]).result()
    });

    let box_there = format!("{address}/library/box:1");
    let _ = lab.orch(&["tag", "busybox", &box_there]).ok();
    let refused = lab.orch(&["push", &box_there]).refused();
    assert!(refused.contains("/etc/orch/certs.d/"), "{refused}");
    let dir = format!("/etc/orch/certs.d/{address}");
    let script = format!("mkdir -p {dir} && cp {} {dir}/ca.crt", path("ca.crt"));
    let _ = lab.exec("n1", &["sh", "-c", &script]).ok();
    let _ = lab.orch(&["push", &box_there]).ok();
    let _ = lab.orch(&["image", "rm", &box_there]).ok();
    let _ = lab.orch(&["image", "rm", "busybox"]).ok();

    // As a mirror it has what Docker Hub's name means.
    configure(&lab, "n1", &format!("registry-mirrors = [\"https://{address}\"]\n"));
    assert_eq!(lab.orch(&["run", "--rm", "-q", "box:1"]).ok(), "from the mirror\n");
    a_registry_that_says_nothing_is_named(&lab);
}

/// It takes connections and never answers.
fn a_registry_that_says_nothing_is_named(lab: &Lab) {
    let script = "import socket, sys, time; s = socket.create_server((sys.argv[1], 5999)); time.sleep(600)";
    let host = lab.address("client");
    let mut mute = lab.spawn("client", &["python3", "-c", script, &host]);
    let image = format!("{host}:5999/x:1");
    let _ = lab.orch(&["service", "create", "-d", "--no-resolve-image", "--name", "waits", &image]).ok();
    let said = format!(" (waiting for its image from {host}:5999)\n");
    eventually("what the task waits for is shown", || {
        let shown = lab.orch(&["service", "ps", "--format", "{{.CurrentState}}", "waits"]).result()?;
        if shown.starts_with("Preparing ") && format!("{shown}\n").contains(&said) { Ok(()) } else { Err(shown) }
    });
    let _ = lab.orch(&["service", "rm", "waits"]).ok();
    mute.kill().expect("stopping the listener");
    let _ = mute.wait();
}
