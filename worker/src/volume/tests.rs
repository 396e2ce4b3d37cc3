//! Volumes that are filled, bounded, mounted, damaged and pruned.

use std::os::unix::fs::{MetadataExt, symlink};

use nix::sched::{CloneFlags, unshare};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};

use super::*;

fn open(dir: &Path) -> Volumes {
    Volumes::open(&dir.join("volumes"), &dir.join("users"), &dir.join("pins")).unwrap()
}

#[test]
fn what_is_mounted_at_a_volume_is_never_guessed() {
    let damages: [&dyn Fn(&Path); 3] = [
        &|path| fs::write(path, "").unwrap(),
        &|path| {
            let whole = fs::read(path).unwrap();
            fs::write(path, &whole[..whole.len() / 2]).unwrap();
        },
        &|path| fs::remove_file(path).and_then(|()| fs::create_dir(path)).unwrap(),
    ];
    for (n, damage) in damages.iter().enumerate() {
        let dir = tempfile::tempdir().unwrap();
        let volumes = open(dir.path());
        let options = [("type", "nfs"), ("device", ":/srv"), ("o", "addr=192.0.2.1")];
        let options = options.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        volumes.create("far", &BTreeMap::new(), &options, SystemTime::UNIX_EPOCH).unwrap();
        let path = dir.path().join("volumes/far").join(DESCRIPTION);
        let copy = store::copy_of(&path);
        for path in [&path, &copy, &path] {
            damage(path);
            assert_eq!(volumes.list().unwrap()[0].options, options, "{n}");
            assert_eq!(volumes.options("far").unwrap().as_ref(), Some(&options), "{n}");
        }
        // Of a version without copies.
        fs::remove_file(&copy).unwrap();
        assert_eq!(volumes.options("far").unwrap().as_ref(), Some(&options), "{n}");
        damage(&path);
        damage(&copy);
        for user in [1, 2].map(TaskId::from_random) {
            let said = volumes.borrow("far", &user).unwrap_err().to_string();
            assert!(said.contains("volume.json\" is damaged, so it is not known what is to be mounted"), "{n}: {said}");
        }
        assert_eq!(volumes.options("new").unwrap(), None);
    }
}

/// Needs root: it gives files to another user.
#[test]
fn a_new_volume_has_what_the_image_has_and_keeps_what_tasks_write() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    fs::create_dir_all(root.join("real/sub")).unwrap();
    fs::write(root.join("real/sub/file"), "from the image").unwrap();
    lchown(root.join("real"), Some(999), Some(998)).unwrap();
    // Absolute inside the image, not on the node.
    symlink("/real", root.join("data")).unwrap();
    let volumes = open(dir.path());
    let none = BTreeMap::new();
    let wanted = Wanted::Named { name: "db", labels: &none, options: &none };
    let (now, user) = (SystemTime::UNIX_EPOCH, TaskId::from_random(1));
    let data = volumes.prepare(wanted, &user, Some((&root, "/data")), now).unwrap();
    assert_eq!(fs::read_to_string(data.join("sub/file")).unwrap(), "from the image");
    let owner = fs::metadata(&data).unwrap();
    assert_eq!((owner.uid(), owner.gid()), (999, 998));

    fs::write(data.join("sub/file"), "mine").unwrap();
    volumes.prepare(wanted, &user, Some((&root, "/data")), now).unwrap();
    assert_eq!(fs::read_to_string(data.join("sub/file")).unwrap(), "mine");
    assert_eq!(volumes.list().unwrap().len(), 1);
    volumes.remove("db").unwrap();
    assert!(matches!(volumes.remove("db"), Err(VolumeError::NotFound(_))));
}

/// Needs root. Mount namespaces are a thread's own, so the other tests do not notice.
#[test]
fn a_volume_that_could_not_be_filled_is_filled_the_next_time() {
    let dir = tempfile::tempdir().unwrap();
    let node = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
        let disk = dir.path().join("volumes");
        fs::create_dir(&disk).unwrap();
        mount("none", &disk, "tmpfs", MountFlags::empty(), c"size=1m").unwrap();
        fs::write(disk.join("filler"), vec![1; 512 << 10]).unwrap();
        let root = dir.path().join("root");
        fs::create_dir_all(root.join("data")).unwrap();
        for name in ["one", "two", "three"] {
            fs::write(root.join("data").join(name), vec![2; 256 << 10]).unwrap();
        }
        let volumes = open(dir.path());
        let none = BTreeMap::new();
        let wanted = Wanted::Named { name: "db", labels: &none, options: &none };
        let user = TaskId::from_random(1);
        let prepare = || volumes.prepare(wanted, &user, Some((&root, "/data")), SystemTime::UNIX_EPOCH);
        let refused = prepare().unwrap_err();
        assert!(matches!(&refused, VolumeError::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull));
        assert_eq!(fs::read_dir(disk.join("db/_data")).unwrap().count(), 0);
        fs::remove_file(disk.join("filler")).unwrap();
        assert_eq!(fs::read_dir(prepare().unwrap()).unwrap().count(), 3);
    });
    node.join().unwrap();
}

#[test]
fn what_has_no_name_of_a_volume_is_none() {
    let dir = tempfile::tempdir().unwrap();
    let volumes = open(dir.path());
    volumes.create("mine", &BTreeMap::new(), &BTreeMap::new(), SystemTime::UNIX_EPOCH).unwrap();
    fs::create_dir(dir.path().join("volumes/lost+found")).unwrap();
    let names: Vec<_> = volumes.list().unwrap().into_iter().map(|volume| volume.name).collect();
    assert_eq!(names, ["mine"]);
}

fn anonymous(task: &TaskId) -> Wanted<'_> {
    static NONE: BTreeMap<String, String> = BTreeMap::new();
    Wanted::Anonymous { task, target: "/data", labels: &NONE, options: &NONE }
}

#[test]
fn anonymous_volumes_have_their_labels() {
    let dir = tempfile::tempdir().unwrap();
    let volumes = open(dir.path());
    let (task, labels) = (TaskId::from_random(1), BTreeMap::from([("a".to_owned(), "b".to_owned())]));
    let Wanted::Anonymous { options, .. } = anonymous(&task) else { unreachable!() };
    let wanted = Wanted::Anonymous { task: &task, target: "/data", labels: &labels, options };
    volumes.prepare(wanted, &task, None, SystemTime::UNIX_EPOCH).unwrap();
    assert_eq!(volumes.list().unwrap()[0].labels, labels);
}

#[test]
fn anonymous_volumes_go_with_their_task() {
    let dir = tempfile::tempdir().unwrap();
    let volumes = open(dir.path());
    let (mine, other) = (TaskId::from_random(1), TaskId::from_random(2));
    for task in [&mine, &other] {
        volumes.prepare(anonymous(task), task, None, SystemTime::UNIX_EPOCH).unwrap();
    }
    let name = |task: &TaskId| volumes.of_task(task)[0].0.clone();
    volumes.remove_of_task(&mine, &[name(&mine)].into()).unwrap();
    assert_eq!(volumes.list().unwrap().len(), 2);
    volumes.remove_of_task(&mine, &[name(&other)].into()).unwrap();
    assert_eq!(volumes.list().unwrap().len(), 1);
}

/// Needs root.
#[test]
fn a_mount_stays_until_the_last_user_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let volumes = open(dir.path());
    let none = BTreeMap::new();
    let options = a_tmpfs();
    let wanted = Wanted::Named { name: "scratch", labels: &none, options: &options };
    let (one, other) = (TaskId::from_random(1), TaskId::from_random(2));
    let data = volumes.prepare(wanted, &one, None, SystemTime::UNIX_EPOCH).unwrap();
    fs::write(data.join("file"), "").unwrap();
    volumes.prepare(wanted, &other, None, SystemTime::UNIX_EPOCH).unwrap();
    volumes.release(&one).unwrap();
    volumes.release(&one).unwrap();
    // By another worker on the same node.
    let volumes = open(dir.path());
    assert!(volumes.borrow("scratch", &other).unwrap().join("file").exists());
    volumes.release(&other).unwrap();
    assert!(!data.join("file").exists() && data.exists());
    volumes.remove("scratch").unwrap();
    assert!(!data.exists());
}

fn a_tmpfs() -> BTreeMap<String, String> {
    [("type", "tmpfs"), ("device", "tmpfs")].map(|(k, v)| (k.to_owned(), v.to_owned())).into()
}

/// Needs root.
#[test]
fn users_from_before_there_were_notes_are_noted() {
    let dir = tempfile::tempdir().unwrap();
    let volumes = open(dir.path());
    let (none, options) = (BTreeMap::new(), a_tmpfs());
    let wanted = Wanted::Named { name: "scratch", labels: &none, options: &options };
    let (old, new) = (TaskId::from_random(1), TaskId::from_random(2));
    let data = volumes.prepare(wanted, &old, None, SystemTime::UNIX_EPOCH).unwrap();
    fs::write(data.join("file"), "").unwrap();
    fs::remove_dir_all(dir.path().join("users/scratch")).unwrap();
    let plain = Wanted::Named { name: "plain", labels: &none, options: &none };
    let plain = volumes.prepare(plain, &old, None, SystemTime::UNIX_EPOCH).unwrap();
    volumes.note(&old, &[data.clone(), plain, "/etc/hosts".into()]).unwrap();
    assert!(!dir.path().join("users/plain").exists());

    volumes.prepare(wanted, &new, None, SystemTime::UNIX_EPOCH).unwrap();
    volumes.release(&new).unwrap();
    assert!(data.join("file").exists());
    volumes.release(&old).unwrap();
    assert!(!data.join("file").exists());
}

/// Needs root.
#[test]
fn notes_go_with_their_volume_and_one_that_stays_holds_up_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let volumes = open(dir.path());
    let (none, options, user) = (BTreeMap::new(), a_tmpfs(), TaskId::from_random(1));
    let names = ["v1", "v2", "v3"];
    for name in names {
        let wanted = Wanted::Named { name, labels: &none, options: &options };
        volumes.prepare(wanted, &user, None, SystemTime::UNIX_EPOCH).unwrap();
    }
    let notes = |name: &str| dir.path().join("users").join(name);
    volumes.remove("v3").unwrap();
    assert!(!notes("v3").exists());
    // A folder is no note that could be deleted.
    for name in ["v0", "v4"] {
        fs::create_dir_all(notes(name).join(user.as_str())).unwrap();
    }
    assert!(matches!(volumes.release(&user), Err(VolumeError::Io { action: "delete", .. })));
    assert!(names.iter().all(|name| !notes(name).exists()));
}

/// Needs root.
#[test]
fn a_folder_of_a_volume_is_filled_alone_and_given_back() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    fs::create_dir_all(root.join("data")).unwrap();
    fs::write(root.join("data/file"), "from the image").unwrap();
    let volumes = open(dir.path());
    let (none, now, user) = (BTreeMap::new(), SystemTime::UNIX_EPOCH, TaskId::from_random(1));
    let wanted = Wanted::Named { name: "db", labels: &none, options: &none };
    let inside = |path: &str| volumes.prepare_inside(wanted, path, &user, Some((&root, "/data")), now);
    let said = inside("a/b").unwrap_err().to_string();
    assert!(said.contains("cannot access path \"a/b\" of volume \"db\""), "{said}");
    let data = dir.path().join("volumes/db/_data");
    fs::create_dir_all(data.join("a/b")).unwrap();
    symlink("/etc", data.join("link")).unwrap();
    let said = inside("link").unwrap_err().to_string();
    assert!(said.contains("it leads out of the volume"), "{said}");
    let pin = inside("a/b").unwrap();
    assert_eq!(fs::read_to_string(pin.join("file")).unwrap(), "from the image");
    assert!(data.join("a/b/file").exists() && !data.join("file").exists());
    assert!(volumes.borrow_inside("db", "a", &user).unwrap().join("b/file").exists());
    volumes.release(&user).unwrap();
    assert!(!pin.exists() && data.join("a/b/file").exists());
    volumes.remove("db").unwrap();
}

#[test]
fn a_name_cannot_leave_the_folder() {
    let dir = tempfile::tempdir().unwrap();
    let volumes = open(dir.path());
    for name in ["..", ".", "", "a", "a/b", "../x", "-a"] {
        assert!(matches!(volumes.remove(name), Err(VolumeError::Name(_))), "{name}");
    }
}
