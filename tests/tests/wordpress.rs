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
    let file = fixture("blog.yml");
    let _ = lab.orch(&["stack", "deploy", "-c", file.to_str().expect("utf-8"), "blog"]).ok();
    lab.wait_replicas("blog_mysql", "1/1");
    lab.wait_replicas("blog_web", "3/3");
    for node in ["n1", "n2", "n3"] {
        let url = format!("http://{}:8080/wp-admin/install.php", lab.address(node));
        eventually("the install page loads", || {
            let page = lab.get("client", &url)?;
            if page.contains("WordPress") && page.contains("language") { Ok(()) } else { Err(page) }
        });
    }
}
