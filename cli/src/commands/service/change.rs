//! Values that both `create` and `update` take, and how lists in a spec change.

use orch_model::{linux, service::Ulimit};

/// Keys are checked again by the manager; here only the form is.
pub(crate) fn constraint(text: &str) -> Result<String, String> {
    let form = "expected KEY==VALUE or KEY!=VALUE, such as node.role==manager or node.labels.disk!=hdd";
    let (key, value) = text.split_once("==").or_else(|| text.split_once("!=")).ok_or(form)?;
    if key.trim().is_empty() || value.trim().is_empty() { Err(form.into()) } else { Ok(text.to_owned()) }
}

pub(crate) fn spread(text: &str) -> Result<String, String> {
    match text.split_once('=') {
        Some(("spread", over)) if !over.is_empty() => Ok(over.to_owned()),
        _ => Err("expected spread=node.labels.KEY".into()),
    }
}

/// `host:ip` as the user writes it; `ip host` as /etc/hosts has it.
pub(crate) fn host_entry(text: &str) -> Result<String, String> {
    let form = "expected HOST:IP, such as db:10.1.2.3";
    let (host, ip) = text.split_once(':').or_else(|| text.split_once('=')).ok_or(form)?;
    let ip: std::net::IpAddr = ip.trim_matches(['[', ']']).parse().map_err(|_| form)?;
    if host.is_empty() { Err(form.into()) } else { Ok(format!("{ip} {host}")) }
}

pub(crate) fn address(text: &str) -> Result<std::net::IpAddr, String> {
    text.parse().map_err(|_| "expected an address such as 10.1.2.3 or fd00::53".to_owned())
}

pub(crate) fn ulimit(text: &str) -> Result<Ulimit, String> {
    let form = "expected NAME=SOFT[:HARD], such as nofile=1024:2048";
    let (name, limits) = text.split_once('=').ok_or(form)?;
    let (soft, hard) = limits.split_once(':').unwrap_or((limits, limits));
    if !linux::is_ulimit(name) {
        return Err(format!("{form}; the names are {}", linux::ULIMITS.join(", ")));
    }
    let number = |text: &str| text.parse::<i64>().map_err(|_| form.to_owned());
    Ok(Ulimit { name: name.into(), soft: number(soft)?, hard: number(hard)? })
}

/// Removes what `gone` names, then adds, replacing what has the same key.
pub(super) fn list<T: Clone, K: PartialEq>(items: &mut Vec<T>, gone: &[K], added: &[T], key: impl Fn(&T) -> K) {
    items.retain(|item| !gone.contains(&key(item)));
    for item in added {
        match items.iter_mut().find(|have| key(have) == key(item)) {
            Some(slot) => *slot = item.clone(),
            None => items.push(item.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms() {
        assert!(constraint("node.role == manager").is_ok() && constraint("a!=b").is_ok());
        assert!(constraint("a=b").is_err() && constraint("==x").is_err());
        assert_eq!(host_entry("db:10.1.2.3"), Ok("10.1.2.3 db".into()));
        assert_eq!(host_entry("db:::1"), Ok("::1 db".into()));
        assert!(host_entry("db").is_err() && host_entry("db:x").is_err());
        assert_eq!(ulimit("nofile=5"), Ok(Ulimit { name: "nofile".into(), soft: 5, hard: 5 }));
        assert_eq!(spread("spread=node.labels.z"), Ok("node.labels.z".into()));
    }

    #[test]
    fn adding_replaces_by_key() {
        let mut items = vec!["A=1".to_owned(), "B=2".into()];
        let key = |item: &String| item.split('=').next().unwrap_or_default().to_owned();
        list(&mut items, &["B".to_owned()], &["A=9".to_owned(), "C=3".into()], key);
        assert_eq!(items, ["A=9", "C=3"]);
    }
}
