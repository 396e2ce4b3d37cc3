//! Who a container runs as: `USER[:GROUP]` by name or number, looked up in the image's own databases.

use std::{io, path::Path};

use super::rootfs;

/// A user that cannot be found.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UserError {
    #[error("unable to find user {0}: no matching entries in the image's /etc/passwd")]
    NoUser(String),
    #[error("unable to find group {0}: no matching entries in the image's /etc/group")]
    NoGroup(String),
    #[error("cannot read the image's /etc/passwd and /etc/group")]
    Read(#[from] io::Error),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// All of the process's groups, its first one included.
    pub(crate) groups: Vec<u32>,
    pub(crate) home: String,
}

/// Finds `user` (empty: root) with `extra` groups in a root filesystem.
pub(crate) fn lookup(root: &Path, user: &str, extra: &[String]) -> Result<User, UserError> {
    resolve(&rootfs::read(root, "/etc/passwd")?, &rootfs::read(root, "/etc/group")?, user, extra)
}

struct Account<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

fn resolve(passwd: &str, group: &str, user: &str, extra: &[String]) -> Result<User, UserError> {
    let (user, group_name) = match user.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (user, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let number = user.parse::<u32>().ok();
    // A name made of digits is a name first, as everywhere.
    let account =
        accounts(passwd).find(|a| a.name == user).or_else(|| accounts(passwd).find(|a| Some(a.uid) == number));
    let (uid, default_gid, home) = match (&account, number) {
        (Some(account), _) => (account.uid, account.gid, account.home),
        (None, Some(uid)) => (uid, 0, ""),
        (None, None) => return Err(UserError::NoUser(user.to_owned())),
    };
    let gid = group_name.map_or(Ok(default_gid), |name| find_group(group, name))?;
    let mut groups = vec![gid];
    // Naming a group says that the others are not wanted.
    if let (Some(account), None) = (&account, group_name) {
        groups.extend(
            entries(group).filter(|g| g.members.split(',').any(|member| member == account.name)).map(|g| g.gid),
        );
    }
    for name in extra {
        groups.push(find_group(group, name)?);
    }
    groups.sort_unstable();
    groups.dedup();
    let home = if home.is_empty() { "/" } else { home };
    Ok(User { uid, gid, groups, home: home.to_owned() })
}

fn accounts(passwd: &str) -> impl Iterator<Item = Account<'_>> {
    passwd.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        Some(Account { name, uid, gid, home: fields.nth(1).unwrap_or_default() })
    })
}

struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

fn entries(group: &str) -> impl Iterator<Item = Group<'_>> {
    group.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let gid = fields.nth(1)?.parse().ok()?;
        Some(Group { name, gid, members: fields.next().unwrap_or_default() })
    })
}

fn find_group(group: &str, name: &str) -> Result<u32, UserError> {
    let by_name = entries(group).find(|entry| entry.name == name).map(|entry| entry.gid);
    by_name.or_else(|| name.parse().ok()).ok_or_else(|| UserError::NoGroup(name.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/sh\nweb:x:33:33:www:/srv/web:/bin/false\nbroken\n1000:x:7:8::/seven:\n";
    const GROUP: &str = "root:x:0:\nweb:x:33:\nlogs:x:40:web,other\nadm:x:4:root\n";

    fn check(user: &str, want: (u32, u32, &[u32], &str)) {
        let got = resolve(PASSWD, GROUP, user, &[]).unwrap();
        assert_eq!((got.uid, got.gid, got.groups.as_slice(), got.home.as_str()), want, "{user:?}");
    }

    #[test]
    fn users_are_found_as_docker_does() {
        check("", (0, 0, &[0, 4], "/root"));
        check("web", (33, 33, &[33, 40], "/srv/web"));
        check("33", (33, 33, &[33, 40], "/srv/web"));
        check("web:adm", (33, 4, &[4], "/srv/web"));
        check("web:99", (33, 99, &[99], "/srv/web"));
        check(":web", (0, 33, &[33], "/root"));
        check("4242", (4242, 0, &[0], "/"));
        check("1000", (7, 8, &[8], "/seven"));
    }

    #[test]
    fn what_is_not_there_is_said() {
        let say = |user: &str, extra: &[String]| resolve(PASSWD, GROUP, user, extra).unwrap_err().to_string();
        assert_eq!(say("nobody", &[]), "unable to find user nobody: no matching entries in the image's /etc/passwd");
        assert_eq!(say("web:none", &[]), "unable to find group none: no matching entries in the image's /etc/group");
        assert_eq!(
            say("web", &["x".to_owned()]),
            "unable to find group x: no matching entries in the image's /etc/group"
        );
        assert_eq!(resolve("", "", "", &["40".to_owned()]).unwrap().groups, [0, 40]);
    }
}
