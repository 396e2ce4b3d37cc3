//! Values that both `create` and `update` take, and how lists in a spec change.

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
