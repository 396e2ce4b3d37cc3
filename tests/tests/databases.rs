//! Debian's nginx, redis, MariaDB, PostgreSQL and WordPress as services (in `--full`): pushed to a registry that is itself a
//! service of the cluster, pulled from there by every node, their data kept when a task is replaced.

use orch_tests::{Lab, eventually};

const SERVE_REGISTRY: &str = "CMD [\"docker-registry\", \"serve\", \"/etc/docker/registry/config.yml\"]";
const ENTRYPOINT: &str = "ENTRYPOINT [\"/usr/local/bin/entrypoint\"]";

/// Image, archive, and the changes that make it one.
const IMAGES: &[(&str, &str, &[&str])] = &[
    ("nginx", "nginx", &["CMD [\"nginx\"]", "EXPOSE 80"]),
    (
        "redis",
        "redis",
        &[
            "CMD [\"redis-server\", \"--bind\", \"0.0.0.0\", \"--protected-mode\", \"no\", \"--dir\", \"/data\"]",
            "VOLUME /data",
            "EXPOSE 6379",
        ],
    ),
    ("mariadb", "mariadb", &[ENTRYPOINT, "VOLUME /var/lib/mysql", "EXPOSE 3306"]),
    ("postgres", "postgres", &[ENTRYPOINT, "VOLUME /var/lib/postgresql/data", "EXPOSE 5432"]),
    ("wordpress", "wordpress", &[ENTRYPOINT, "EXPOSE 80"]),
];

/// A command in the service's one task.
fn inside(lab: &Lab, service: &str, script: &str) -> Result<String, String> {
    lab.orch(&["exec", &format!("{service}.1"), "sh", "-c", script]).result()
}

/// Kills the task and waits for another one.
fn replace(lab: &Lab, service: &str) {
    let running = || -> Result<String, String> {
        let ids = lab.orch(&["service", "ps", "-q", "--no-trunc", "-f", "desired-state=running", service]).result()?;
        ids.lines().next().map(str::to_owned).ok_or(ids)
    };
    let before = running().expect("a task");
    let _ = lab.orch(&["service", "update", "--force", "-d", service]).ok();
    eventually("the task is replaced", || match running()? {
        now if now == before => Err(now),
        _ => Ok(()),
    });
    lab.wait_replicas(service, "1/1");
}

#[test]
fn services_from_a_registry_keep_their_data() {
    let lab = Lab::up("databases", 2, 1);
    lab.import("registry:2", "registry", &[SERVE_REGISTRY, "EXPOSE 5000"]);
    let registry =
        ["service", "create", "-d", "--name", "registry", "-p", "5000:5000", "--constraint", "node.role==manager"];
    let volume = ["--mount", "type=volume,source=registry,target=/var/lib/registry", "registry:2"];
    let _ = lab.orch(&[&registry[..], &volume].concat()).ok();
    lab.wait_replicas("registry", "1/1");

    // As the tutorial has it: every node's own port 5000 is the registry.
    for (image, archive, changes) in IMAGES {
        lab.import(image, archive, changes);
        let name = format!("127.0.0.1:5000/debian/{image}");
        let _ = lab.orch(&["tag", image, &name]).ok();
        let _ = lab.orch(&["push", "-q", &name]).ok();
        // From now on only the registry has it.
        let _ = lab.orch(&["image", "rm", &name]).ok();
        let _ = lab.orch(&["image", "rm", image]).ok();
    }
    let _ = lab.orch(&["network", "create", "-d", "overlay", "back"]).ok();
    let _ = lab.exec_with_input("n1", &["orch", "secret", "create", "db", "-"], b"it's a secret").ok();
    let create = |name: &str, options: &[&str], image: &str| {
        let image = format!("127.0.0.1:5000/debian/{image}");
        let common =
            ["service", "create", "-d", "--name", name, "--network", "back", "--constraint", "node.hostname==n2"];
        let said = lab.orch(&[&common[..], options, &[&image]].concat());
        assert_eq!((said.code, said.stderr.as_str()), (0, ""), "{said:?}");
    };
    create("web", &["-p", "8080:80"], "nginx");
    create("cache", &["--mount", "type=volume,source=cache,target=/data"], "redis");
    let password = ["--secret", "db", "-e", "MYSQL_ROOT_PASSWORD_FILE=/run/secrets/db", "-e", "MYSQL_DATABASE=blog"];
    create(
        "mysql",
        &[&password[..], &["--mount", "type=volume,source=mysql,target=/var/lib/mysql"]].concat(),
        "mariadb",
    );
    let password = ["--secret", "db", "-e", "POSTGRES_PASSWORD_FILE=/run/secrets/db", "-e", "POSTGRES_DB=shop"];
    let data = ["--mount", "type=volume,source=pg,target=/var/lib/postgresql/data"];
    create("pg", &[&password[..], &data].concat(), "postgres");
    let blog = [
        "--secret",
        "db",
        "-e",
        "WORDPRESS_DB_PASSWORD_FILE=/run/secrets/db",
        "-e",
        "WORDPRESS_DB_NAME=blog",
        "-p",
        "8081:80",
    ];
    create("blog", &blog, "wordpress");
    ["web", "cache", "mysql", "pg", "blog"].iter().for_each(|service| lab.wait_replicas(service, "1/1"));

    for node in ["n1", "n2"] {
        let url = format!("http://{}:8080/", lab.address(node));
        eventually("nginx answers", || {
            let page = lab.get("client", &url)?;
            if page.contains("nginx") { Ok(()) } else { Err(page) }
        });
        let url = format!("http://{}:8081/wp-admin/install.php", lab.address(node));
        eventually("the install page loads", || {
            let page = lab.get("client", &url)?;
            if page.contains("WordPress") && page.contains("language") { Ok(()) } else { Err(page) }
        });
    }

    let mysql = "mariadb -uroot -p\"$(cat /run/secrets/db)\" -N blog -e";
    let psql = "PGPASSWORD=\"$(cat /run/secrets/db)\" psql -h 127.0.0.1 -U postgres -At shop -c";
    let statements = [
        ("cache", "redis-cli set kept yes && redis-cli save".to_owned(), "redis-cli get kept".to_owned()),
        (
            "mysql",
            format!("{mysql} 'create table t (v text); insert into t values (\"yes\")'"),
            format!("{mysql} 'select v from t'"),
        ),
        (
            "pg",
            format!("{psql} \"create table t (v text); insert into t values ('yes')\""),
            format!("{psql} 'select v from t'"),
        ),
    ];
    for (service, write, _) in &statements {
        eventually("it takes data", || inside(&lab, service, write));
    }
    for (service, ..) in &statements {
        replace(&lab, service);
    }
    for (service, _, read) in &statements {
        eventually("the data is there", || match inside(&lab, service, read)?.trim() {
            "yes" => Ok(()),
            other => Err(format!("{service}: {other}")),
        });
    }
    // By the service's name, from another service, through the overlay network.
    eventually("redis answers by its name", || {
        lab.orch(&["exec", "pg.1", "bash", "-c", "exec 3<>/dev/tcp/cache/6379"]).result()
    });
}
