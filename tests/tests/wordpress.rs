//! WordPress and MariaDB from a real registry (in `--full`).

use std::{
    fs,
    process::{Child, Command, Stdio},
};

use orch_tests::{Lab, eventually, fixture, image};

/// Debian's docker-registry on the lab's client host, stopped when dropped.
struct Registry {
    process: Child,
    _folder: tempfile::TempDir,
}

impl Registry {
    fn start(lab: &Lab, address: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let config = folder.path().join("config.yml");
        let text = format!(
            "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {address}\n",
            folder.path().join("data").display()
        );
        fs::write(&config, text).expect("the registry's configuration");
        let process = lab.spawn("client", &["docker-registry", "serve", config.to_str().expect("utf-8")]);
        eventually("the registry answers", || lab.get("client", &format!("http://{address}/v2/")));
        Self { process, _folder: folder }
    }

    /// Makes an OCI image of a root filesystem and pushes it, with an entrypoint.
    fn push(&self, lab: &Lab, address: &str, name: &str, root: &str) {
        let folder = tempfile::tempdir().expect("a folder");
        let script = fixture("push-image.py");
        let tar = image(root);
        let made = Command::new("python3")
            .arg(script)
            .args([tar.as_os_str(), folder.path().as_os_str()])
            .args(["/usr/local/bin/entrypoint"])
            .stdin(Stdio::null())
            .status()
            .expect("making the image");
        assert!(made.success());
        let source = format!("oci:{}", folder.path().display());
        let target = format!("docker://{address}/{name}");
        let _ = lab.exec("client", &["skopeo", "copy", "-q", "--dest-tls-verify=false", &source, &target]).ok();
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn the_install_page_loads_through_any_node() {
    let lab = Lab::up("wordpress", 3, 1);
    let address = format!("{}:5000", lab.address("client"));
    let registry = Registry::start(&lab, &address);
    registry.push(&lab, &address, "library/wordpress:latest", "wordpress");
    registry.push(&lab, &address, "library/mysql:5.7", "mariadb");
    for node in ["n1", "n2", "n3"] {
        let keys = format!("registry-mirrors = [\"http://{address}\"]\ninsecure-registries = [\"{address}\"]\n");
        let script = "f=/etc/orch/orch.toml; { cat; grep -v -e ^registry-mirrors -e ^insecure-registries $f; } > /tmp/orch.toml.$$ && cat /tmp/orch.toml.$$ > $f; rm /tmp/orch.toml.$$";
        let _ = lab.exec_with_input(node, &["sh", "-c", script], keys.as_bytes()).ok();
    }
    install_page_loads(&lab, "blog.yml", "blog", 8080);
    let _ = lab.orch(&["stack", "rm", "blog"]).ok();
    install_page_loads(&lab, "blog-secret.yml", "safe", 8081);
    the_password_is_in_the_secret_only(&lab);
}

fn install_page_loads(lab: &Lab, file: &str, stack: &str, port: u16) {
    let file = fixture(file);
    let _ = lab.orch(&["stack", "deploy", "-c", file.to_str().expect("utf-8"), stack]).ok();
    lab.wait_replicas(&format!("{stack}_mysql"), "1/1");
    lab.wait_replicas(&format!("{stack}_web"), "3/3");
    for node in ["n1", "n2", "n3"] {
        let url = format!("http://{}:{port}/wp-admin/install.php", lab.address(node));
        eventually("the install page loads", || {
            let page = lab.get("client", &url)?;
            if page.contains("WordPress") && page.contains("language") { Ok(()) } else { Err(page) }
        });
    }
}

/// Neither what is asked for nor the container's environment has it.
fn the_password_is_in_the_secret_only(lab: &Lab) {
    let password = fs::read_to_string(fixture("root-password.txt")).expect("the fixture");
    let password = password.trim();
    let inside = |script: &str| lab.orch(&["exec", "safe_web.1", "sh", "-c", script]).ok();
    assert_eq!(inside("cat /run/secrets/root-password").trim(), password);
    assert!(inside("grep /run/secrets /proc/mounts").contains("tmpfs"), "it is in memory");
    let environment = inside("tr '\\0' '\\n' < /proc/1/environ");
    assert!(environment.contains("WORDPRESS_DB_PASSWORD_FILE=/run/secrets/root-password"), "{environment}");
    let asked = lab.orch(&["service", "inspect", "safe_web", "safe_mysql"]).ok();
    let secret = lab.orch(&["secret", "inspect", "safe_root-password"]).ok();
    for text in [environment, asked, secret] {
        assert!(!text.contains(password), "{text}");
    }
}
