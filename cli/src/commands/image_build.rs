//! `orch build`: hands a Dockerfile to an installed builder, and loads what comes of it.
//!
//! Orch builds nothing itself. buildah and BuildKit (`buildctl` with a running `buildkitd`) both write an archive that
//! `orch load` reads.

mod sources;

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs::DirBuilder,
    io::Write as _,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail};
use clap::Args;
use orch_proto::{paths::Paths, wire};
use serde::Deserialize;
use tokio_stream::StreamExt as _;

use self::sources::Sources;
use super::{image::registry_of, image_files::send};
use crate::{
    api::{Worker, explain, worker},
    flags::quantity,
};

/// Only there when cgroups are of version 2 alone, which OCI runtimes of builders want.
const PURE_CGROUP2: &str = "/sys/fs/cgroup/cgroup.controllers";

#[derive(Debug, Args)]
pub(crate) struct BuildArgs {
    /// Name and optionally a tag (format: name:tag)
    #[arg(short, long, value_name = "NAME[:TAG]")]
    tag: Vec<String>,
    /// Name of the Dockerfile, or - for standard input (default: DIR/Dockerfile)
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Set build-time variables
    #[arg(long, value_name = "NAME=VALUE")]
    build_arg: Vec<String>,
    /// Set metadata for an image
    #[arg(long, value_name = "NAME=VALUE")]
    label: Vec<String>,
    /// Add a custom host-to-IP mapping (host:ip) for the RUN instructions
    #[arg(long, value_name = "HOST:IP")]
    add_host: Vec<String>,
    /// Secret file to expose to the RUN instructions that mount it
    #[arg(long, value_name = "id=ID[,src=FILE]")]
    secret: Vec<String>,
    /// Size of /dev/shm in the RUN instructions
    #[arg(long, value_name = "BYTES")]
    shm_size: Option<String>,
    /// Ulimit options of the RUN instructions
    #[arg(long, value_name = "NAME=SOFT[:HARD]")]
    ulimit: Vec<String>,
    /// Set type of progress output (auto, plain, quiet, tty); buildah's is always plain
    #[arg(long, value_name = "TYPE", default_value = "auto", value_parser = ["auto", "plain", "quiet", "tty"])]
    progress: String,
    /// Set the target build stage to build
    #[arg(long, value_name = "STAGE")]
    target: Option<String>,
    /// Do not use cache when building the image
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false", action = clap::ArgAction::Set)]
    no_cache: bool,
    /// Suppress the build output and print image ID on success
    #[arg(short, long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false", action = clap::ArgAction::Set)]
    quiet: bool,
    /// Always attempt to pull a newer version of the image
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false", action = clap::ArgAction::Set)]
    pull: bool,
    /// Remove intermediate containers after a successful build
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "true", action = clap::ArgAction::Set)]
    rm: bool,
    /// Always remove intermediate containers
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false", action = clap::ArgAction::Set)]
    force_rm: bool,
    /// Set the networking mode for the RUN instructions during build (default, none or host)
    #[arg(long, value_name = "NETWORK", default_value = "default", value_parser = network)]
    network: Network,
    /// Write the image ID to the file
    #[arg(long, value_name = "FILE")]
    iidfile: Option<PathBuf>,
    /// The folder that the Dockerfile's COPY reads from, or - for a tar of it or a Dockerfile on standard input
    #[arg(value_name = "DIR|-")]
    context: PathBuf,
}

/// Where the commands of a Dockerfile run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Network {
    /// As the builder is used to.
    Usual,
    None,
    Host,
}

fn network(text: &str) -> Result<Network, String> {
    match text {
        "" | "default" | "bridge" => Ok(Network::Usual),
        "none" => Ok(Network::None),
        "host" => Ok(Network::Host),
        _ => Err("the builder runs beside Orch, without its networks: default, none and host are possible".to_owned()),
    }
}

pub(crate) async fn build(mut args: BuildArgs, paths: &Paths) -> anyhow::Result<()> {
    args.quiet |= args.progress == "quiet";
    let folder = std::env::temp_dir().join(format!("orch-build-{}", std::process::id()));
    // What is built may have keys in it.
    DirBuilder::new().mode(0o700).create(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let outcome = build_and_load(&args, &folder, paths).await;
    // It may be large.
    let _ = std::fs::remove_dir_all(&folder);
    outcome
}

async fn build_and_load(args: &BuildArgs, folder: &Path, paths: &Paths) -> anyhow::Result<()> {
    let sources = sources::find(&args.context, args.file.as_deref(), folder, std::io::stdin())?;
    if let Some(file) = &args.iidfile {
        forget(file)?;
    }
    // Before the work, not after it.
    let mut worker = worker(paths).await?;
    let archive = folder.join("image.tar");
    if is_installed("buildah") {
        with_buildah(args, &sources, folder, &archive, &mut worker, paths).await?;
    } else if is_installed("buildctl") {
        run(&mut buildctl(args, &sources, &archive)?, args.quiet)?;
    } else {
        bail!(
            "orch build needs a builder: install buildah (`apt-get install buildah`), or BuildKit (buildctl, with buildkitd \
             running), and try again. An image built elsewhere comes in with `docker save {} | orch load`",
            args.tag.first().map_or("IMAGE", String::as_str)
        );
    }
    let file = tokio::fs::File::open(&archive).await.context("the builder wrote no archive")?;
    let loaded = send(&mut worker, Box::new(file)).await?.loaded;
    for other in args.tag.iter().skip(1) {
        let request = wire::TagImageRequest { source: args.tag[0].clone(), target: other.clone() };
        worker.tag_image(request).await.map_err(explain)?;
    }
    let reference = loaded.first().cloned().context("the builder's archive has no image")?;
    let image = worker.inspect_image(wire::ImageReference { reference }).await.map_err(explain)?.into_inner();
    report(args, &loaded, &image.config_digest)
}

/// A build that fails leaves no image's ID behind, nor that of an earlier one.
fn forget(file: &Path) -> anyhow::Result<()> {
    match std::fs::remove_file(file) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot write {}", file.display()))
        }
        _ => Ok(()),
    }
}

fn report(args: &BuildArgs, loaded: &[String], id: &str) -> anyhow::Result<()> {
    if let Some(file) = &args.iidfile {
        std::fs::write(file, id).with_context(|| format!("the image is {id}, but cannot write {}", file.display()))?;
    }
    match args.tag.as_slice() {
        _ if args.quiet => println!("{id}"),
        [] => println!("Loaded image ID: {id}"),
        [_, others @ ..] => loaded.iter().chain(others).for_each(|name| println!("Loaded image: {name}")),
    }
    Ok(())
}

/// Gives buildah the base images that this node has, and what the node's configuration says about registries.
async fn with_buildah(
    args: &BuildArgs,
    sources: &Sources,
    folder: &Path,
    archive: &Path,
    worker: &mut Worker,
    paths: &Paths,
) -> anyhow::Result<()> {
    let isolation = std::env::var("BUILDAH_ISOLATION").ok();
    let chroot = isolation.is_none() && !Path::new(PURE_CGROUP2).exists();
    let mut build = Command::new("buildah");
    with_options(build.arg("bud"), args, sources, chroot || isolation.as_deref() == Some("chroot"))?;
    // buildah says what is wrong with one that cannot be read.
    let bases = base_images(&std::fs::read_to_string(&sources.dockerfile).unwrap_or_default(), &args.build_arg);
    let registries = folder.join("registries.conf");
    let text = registries_conf(&node_config(paths), &bases);
    std::fs::write(&registries, text).with_context(|| format!("cannot write {}", registries.display()))?;
    let run_it = |command: &mut Command| {
        command.env("CONTAINERS_REGISTRIES_CONF", &registries);
        if chroot {
            command.env("BUILDAH_ISOLATION", "chroot");
        }
        run(command, args.quiet)
    };
    let buildah = |verb: &str| {
        let mut command = Command::new("buildah");
        command.arg(verb).arg("--quiet");
        command
    };
    for (n, base) in bases.iter().enumerate() {
        let request = wire::ImageReference { reference: base.clone() };
        // What shall be newer comes from a registry.
        if !args.pull && worker.inspect_image(request).await.is_ok() {
            let base_archive = folder.join(format!("base-{n}.tar"));
            save(worker, base, &base_archive).await?;
            run_it(buildah("pull").arg(format!("docker-archive:{}", base_archive.display())))?;
            // It may be large.
            let _ = std::fs::remove_file(base_archive);
        }
    }
    let id_file = folder.join("id");
    run_it(build.arg("--iidfile").arg(&id_file).arg(&sources.context))?;
    let id = std::fs::read_to_string(&id_file).context("buildah does not say what it built")?;
    // By its id it has the one name that is given here, or none.
    let name = args.tag.first().map(|name| format!(":{}", tagged(name))).unwrap_or_default();
    run_it(buildah("push").args([id.trim(), &format!("docker-archive:{}{name}", archive.display())]))
}

/// An archive's name needs its tag.
fn tagged(name: &str) -> String {
    super::image::with_tag(name)
}

async fn save(worker: &mut Worker, image: &str, to: &Path) -> anyhow::Result<()> {
    let failed = || format!("cannot write {}", to.display());
    let request = wire::ImageReferences { references: vec![image.to_owned()] };
    let mut chunks = worker.save_images(request).await.map_err(explain)?.into_inner();
    let mut file = std::fs::File::create(to).with_context(failed)?;
    while let Some(chunk) = chunks.next().await {
        file.write_all(&chunk.map_err(explain)?.data).with_context(failed)?;
    }
    Ok(())
}

/// The images that a Dockerfile begins its stages with.
fn base_images(dockerfile: &str, build_args: &[String]) -> Vec<String> {
    let mut values: BTreeMap<String, String> = BTreeMap::new();
    let (mut bases, mut stages) = (Vec::new(), Vec::new());
    for line in dockerfile.lines() {
        let mut words = line.split_whitespace();
        match words.next().map(str::to_ascii_uppercase).as_deref() {
            Some("ARG") => {
                for word in words {
                    let (name, default) = word.split_once('=').unwrap_or((word, ""));
                    let given = build_args.iter().filter_map(|pair| pair.split_once('=')).find(|(key, _)| *key == name);
                    let value = given.map_or(default, |(_, value)| value).trim_matches('"');
                    values.insert(name.to_owned(), value.to_owned());
                }
            }
            Some("FROM") => {
                let words: Vec<&str> = words.filter(|word| !word.starts_with("--")).collect();
                let image = words.first().map(|image| filled_in(image, &values)).unwrap_or_default();
                if !image.is_empty() && image != "scratch" && !stages.contains(&image) && !bases.contains(&image) {
                    bases.push(image);
                }
                stages.extend(words.get(2).map(|name| (*name).to_owned()));
            }
            _ => {}
        }
    }
    bases
}

/// `$NAME` and `${NAME}`, as FROM may have them.
fn filled_in(text: &str, values: &BTreeMap<String, String>) -> String {
    // Longer names first: `$AB` is not `$A` and a `B`.
    let mut names: Vec<&String> = values.keys().collect();
    names.sort_by_key(|name| std::cmp::Reverse(name.len()));
    names.into_iter().fold(text.to_owned(), |text, name| {
        text.replace(&format!("${{{name}}}"), &values[name]).replace(&format!("${name}"), &values[name])
    })
}

/// What `orch.toml` says about registries.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct NodeConfig {
    insecure_registries: Vec<String>,
    registry_mirrors: Vec<String>,
}

fn node_config(paths: &Paths) -> NodeConfig {
    // The worker says what is wrong with one that cannot be read.
    let text = std::fs::read_to_string(paths.config_file()).unwrap_or_default();
    toml::from_str(&text).unwrap_or_default()
}

/// The same in the builder's words. Docker takes this machine's own registries to be insecure, too.
fn registries_conf(config: &NodeConfig, bases: &[String]) -> String {
    let mut text = String::from("unqualified-search-registries = [\"docker.io\"]\nshort-name-mode = \"permissive\"\n");
    let is_own = |host: &&str| host.starts_with("localhost") || host.starts_with("127.");
    let own = bases.iter().filter_map(|base| registry_of(base)).filter(is_own);
    let listed = config.insecure_registries.iter().map(String::as_str).filter(|host| !host.contains('/'));
    let mut insecure: Vec<&str> = own.chain(listed).collect();
    insecure.sort_unstable();
    insecure.dedup();
    for host in insecure {
        let _ = write!(text, "[[registry]]\nlocation = {host:?}\ninsecure = true\n");
    }
    if !config.registry_mirrors.is_empty() {
        text.push_str("[[registry]]\nlocation = \"docker.io\"\n");
    }
    for mirror in &config.registry_mirrors {
        let plain = mirror.starts_with("http://");
        let host = mirror.split_once("://").map_or(mirror.as_str(), |(_, host)| host).trim_end_matches('/');
        let _ = write!(text, "[[registry.mirror]]\nlocation = {host:?}\ninsecure = {plain}\n");
    }
    text
}

/// All but the folder, which is last.
fn with_options(command: &mut Command, args: &BuildArgs, sources: &Sources, chroot: bool) -> anyhow::Result<()> {
    // Docker's form keeps what the other has no word for: health checks.
    command.args(["--format", "docker"]);
    if let Some(name) = args.tag.first() {
        command.args(["--tag", name]);
    }
    if !sources.is_usual {
        command.arg("--file").arg(&sources.dockerfile);
    }
    for (flag, values) in [
        ("--build-arg", &args.build_arg),
        ("--label", &args.label),
        ("--add-host", &args.add_host),
        ("--secret", &args.secret),
        ("--ulimit", &args.ulimit),
    ] {
        for value in values {
            command.args([flag, value]);
        }
    }
    if let Some(size) = &args.shm_size {
        command.args(["--shm-size", size]);
    }
    if let Some(stage) = &args.target {
        command.args(["--target", stage]);
    }
    let flags = [("--no-cache", args.no_cache), ("--force-rm", args.force_rm)];
    command.args(flags.into_iter().filter(|(_, is_set)| *is_set).map(|(flag, _)| flag));
    if !args.rm {
        command.arg("--rm=false");
    }
    if args.pull {
        command.arg("--pull=always");
    }
    match args.network {
        // It would take the host's network all the same, and say nothing.
        Network::None if chroot => bail!(
            "--network none: buildah cannot keep commands from the network on this node, where it only changes their root \
             (isolation chroot): boot the node with cgroup version 2 alone, or leave --network out"
        ),
        Network::None => drop(command.args(["--network", "none"])),
        Network::Host => drop(command.args(["--network", "host"])),
        Network::Usual => {}
    }
    Ok(())
}

fn buildctl(args: &BuildArgs, sources: &Sources, archive: &Path) -> anyhow::Result<Command> {
    if !args.rm {
        bail!(
            "--rm=false: BuildKit has no intermediate containers that could be kept: leave --rm out, or install buildah"
        );
    }
    let file = &sources.dockerfile;
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut command = Command::new("buildctl");
    command.args(["build", "--frontend", "dockerfile.v0"]);
    command.arg("--local").arg(format!("context={}", sources.context.display()));
    command.arg("--local").arg(format!("dockerfile={}", folder.display()));
    if let Some(name) = file.file_name() {
        command.arg("--opt").arg(format!("filename={}", name.to_string_lossy()));
    }
    let hosts = args.add_host.iter().map(|pair| host_and_address(pair)).collect::<anyhow::Result<Vec<_>>>()?;
    let pairs = |name: &'static str, values: &[String]| -> Vec<String> {
        values.iter().map(|pair| format!("{name}:{pair}")).collect()
    };
    let joined = |name: &str, values: &[String]| (!values.is_empty()).then(|| format!("{name}={}", values.join(",")));
    let size = args.shm_size.as_deref().map(quantity::bytes).transpose().map_err(anyhow::Error::msg)?;
    let options = pairs("build-arg", &args.build_arg)
        .into_iter()
        .chain(pairs("label", &args.label))
        .chain(joined("add-hosts", &hosts))
        .chain(joined("ulimit", &args.ulimit))
        .chain(size.map(|bytes| format!("shm-size={bytes}")));
    for option in options {
        command.args(["--opt", &option]);
    }
    for secret in &args.secret {
        command.args(["--secret", secret]);
    }
    if args.progress != "auto" {
        command.args(["--progress", &args.progress]);
    }
    if let Some(stage) = &args.target {
        command.arg("--opt").arg(format!("target={stage}"));
    }
    if args.no_cache {
        command.arg("--no-cache");
    }
    if args.pull {
        command.args(["--opt", "image-resolve-mode=pull"]);
    }
    match args.network {
        Network::None => drop(command.args(["--opt", "force-network-mode=none"])),
        // buildkitd must allow it, too, and says so.
        Network::Host => drop(command.args(["--opt", "force-network-mode=host", "--allow", "network.host"])),
        Network::Usual => {}
    }
    let name = args.tag.first().map(|name| format!("name={name},")).unwrap_or_default();
    command.arg("--output").arg(format!("type=docker,{name}dest={}", archive.display()));
    Ok(command)
}

/// `HOST=IP` of `HOST:IP`, as BuildKit writes it.
fn host_and_address(pair: &str) -> anyhow::Result<String> {
    let (host, address) =
        pair.split_once([':', '=']).with_context(|| format!("--add-host {pair}: expected HOST:IP"))?;
    Ok(format!("{host}={address}"))
}

/// `quiet`: its words are shown only when it fails.
fn run(command: &mut Command, quiet: bool) -> anyhow::Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let failed = || format!("cannot run {program}");
    let status = if quiet {
        let output = command.stdin(Stdio::null()).output().with_context(failed)?;
        if !output.status.success() {
            let mut to = std::io::stderr().lock();
            to.write_all(&output.stdout).and_then(|()| to.write_all(&output.stderr)).context("cannot say why")?;
        }
        output.status
    } else {
        command.status().with_context(failed)?
    };
    if status.success() { Ok(()) } else { bail!("{program} failed ({status}); its words are above") }
}

fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base_images_are_found() {
        let dockerfile = "ARG V=1\nARG BASE=\"web\"\n# FROM no\nFROM --platform=linux/amd64 ${BASE}:$V AS one\nRUN x\nfrom scratch\nFROM one\nFROM other AS two\n";
        assert_eq!(base_images(dockerfile, &[]), ["web:1", "other"]);
        assert_eq!(base_images(dockerfile, &["V=2".to_owned()]), ["web:2", "other"]);
        assert_eq!(base_images("", &[]), [] as [&str; 0]);
    }

    fn args(words: &str) -> BuildArgs {
        #[derive(Debug, clap::Parser)]
        struct Line {
            #[command(flatten)]
            build: BuildArgs,
        }
        <Line as clap::Parser>::try_parse_from(["build"].into_iter().chain(words.split_whitespace())).unwrap().build
    }

    #[test]
    fn flags_reach_the_builders() {
        let shown = |command: &Command| {
            command.get_args().map(|arg| arg.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
        };
        for (words, buildah, buildkit) in [
            ("x", "--format docker", "--output type=docker,dest=A"),
            ("-t a -t b x", "--format docker --tag a", "--output type=docker,name=a,dest=A"),
            ("-q --no-cache x", "--format docker --no-cache", "--no-cache --output type=docker,dest=A"),
            ("--rm --force-rm x", "--format docker --force-rm", "--output type=docker,dest=A"),
            ("--rm=false x", "--format docker --rm=false", "refused: --rm=false"),
            ("--pull x", "--format docker --pull=always", "--opt image-resolve-mode=pull --output type=docker,dest=A"),
            ("--network bridge x", "--format docker", "--output type=docker,dest=A"),
            (
                "--network host x",
                "--format docker --network host",
                "--opt force-network-mode=host --allow network.host --output type=docker,dest=A",
            ),
            (
                "--label a=b --label c= --add-host db:10.0.0.7 --add-host v6:::1 x",
                "--format docker --label a=b --label c= --add-host db:10.0.0.7 --add-host v6:::1",
                "--opt label:a=b --opt label:c= --opt add-hosts=db=10.0.0.7,v6=::1 --output type=docker,dest=A",
            ),
            (
                "--secret id=k,src=/k --shm-size 1m --ulimit nofile=9:9 --progress plain x",
                "--format docker --secret id=k,src=/k --ulimit nofile=9:9 --shm-size 1m",
                "--opt ulimit=nofile=9:9 --opt shm-size=1048576 --secret id=k,src=/k --progress plain --output type=docker,dest=A",
            ),
            ("--add-host db x", "--format docker --add-host db", "refused: --add-host db: expected HOST:IP"),
            (
                "--network none x",
                "--format docker --network none",
                "--opt force-network-mode=none --output type=docker,dest=A",
            ),
        ] {
            let args = args(words);
            let sources = Sources { context: "x".into(), dockerfile: "x/Dockerfile".into(), is_usual: true };
            let mut command = Command::new("buildah");
            with_options(&mut command, &args, &sources, false).unwrap();
            assert_eq!(shown(&command), buildah, "{words}");
            let other = match buildctl(&args, &sources, Path::new("A")) {
                Ok(command) => shown(&command),
                Err(error) => format!("refused: {error}"),
            };
            let common =
                "build --frontend dockerfile.v0 --local context=x --local dockerfile=x --opt filename=Dockerfile ";
            assert!(other.trim_start_matches(common).starts_with(buildkit), "{words}: {other}");
            let in_chroot = with_options(&mut command, &args, &sources, true);
            assert_eq!(in_chroot.is_err(), args.network == Network::None, "{words}");
        }
        assert!(network("container:web").is_err() && network("web").is_err());
    }

    #[test]
    fn registries_are_said_in_the_builders_words() {
        let config = NodeConfig {
            insecure_registries: vec!["reg:5000".to_owned(), "10.0.0.0/8".to_owned()],
            registry_mirrors: vec!["http://mirror:80/".to_owned()],
        };
        let text = registries_conf(&config, &["localhost:5000/a".to_owned(), "web".to_owned()]);
        let registries: toml::Value = toml::from_str(&text).unwrap();
        let all = registries["registry"].as_array().unwrap();
        let locations: Vec<&str> = all.iter().filter_map(|one| one["location"].as_str()).collect();
        assert_eq!(locations, ["localhost:5000", "reg:5000", "docker.io"]);
        assert_eq!(all[2]["mirror"][0]["location"].as_str(), Some("mirror:80"));
    }
}
