//! `--filter KEY=VALUE`: values of one key are alternatives, except labels, which must all hold; keys are conditions that must all hold.

use std::collections::BTreeMap;

use regex::Regex;

use super::Refusal;

#[derive(Debug, Clone, Default)]
pub(crate) struct FilterSet {
    values: BTreeMap<String, Vec<String>>,
}

impl FilterSet {
    /// Refuses a key that the command does not know.
    pub(crate) fn parse(flags: &[String], known: &[&str]) -> Result<Self, Refusal> {
        let mut set = Self::default();
        for flag in flags {
            let (key, value) = flag
                .split_once('=')
                .ok_or_else(|| format!("invalid filter {flag:?}: expected KEY=VALUE, such as name=web"))?;
            let key = key.trim().to_lowercase();
            if !known.contains(&key.as_str()) {
                return Err(format!("invalid filter {key:?}: this list filters by {}", known.join(", ")));
            }
            set.values.entry(key).or_default().push(value.trim().to_owned());
        }
        Ok(set)
    }

    /// Refuses a value of `key` that is none of these words.
    pub(crate) fn only(self, key: &str, words: &[&str]) -> Result<Self, Refusal> {
        let unknown = self.values.get(key).into_iter().flatten().find(|value| !words.contains(&value.as_str()));
        match unknown {
            Some(value) => Err(format!("invalid filter {key}={value}: {key} is one of {}", words.join(", "))),
            None => Ok(self),
        }
    }

    /// True when the key is not filtered by, or one of its values satisfies `test`.
    pub(crate) fn any(&self, key: &str, test: impl Fn(&str) -> bool) -> bool {
        self.values.get(key).is_none_or(|values| values.iter().any(|value| test(value)))
    }

    /// The values that are alternatives for a key.
    pub(crate) fn values(&self, key: &str) -> &[String] {
        self.values.get(key).map_or(&[], Vec::as_slice)
    }

    /// Whether the key is filtered by.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.values.contains_key(key)
    }

    /// All labels of `key` are there, and not all of `key!`: `label!=keep` leaves out what has that label.
    pub(crate) fn labels(&self, key: &str, labels: &BTreeMap<String, String>) -> bool {
        let has = |wanted: &String| match wanted.split_once('=') {
            Some((name, value)) => labels.get(name).is_some_and(|have| have == value),
            None => labels.contains_key(wanted.as_str()),
        };
        let left_out = self.values.get(&format!("{key}!"));
        self.values(key).iter().all(has) && !left_out.is_some_and(|wanted| wanted.iter().all(has))
    }
}

/// Docker's filters by name are regular expressions that are found in it; what is none finds nothing but itself.
pub(crate) fn names(pattern: &str, name: &str) -> bool {
    pattern == name || Regex::new(pattern).is_ok_and(|pattern| pattern.is_match(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_found_by_a_pattern() {
        for (pattern, name, want) in [
            ("we", "web", true),
            ("^web$", "web", true),
            ("^web$", "webs", false),
            ("^/web$", "/web", true),
            ("w[aeiou]b", "my-web-2", true),
            ("web(", "web", false),
            ("", "web", true),
        ] {
            assert_eq!(names(pattern, name), want, "{pattern} {name}");
        }
    }

    #[test]
    fn values_are_alternatives_and_labels_all_hold() {
        let flags = ["name=a", "name=b", "label=x", "label=y=1"].map(String::from);
        let set = FilterSet::parse(&flags, &["name", "label"]).unwrap();
        assert!(set.any("name", |v| v == "b") && !set.any("name", |v| v == "c") && set.any("id", |_| false));
        let labels = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
        assert!(set.labels("label", &labels(&[("x", ""), ("y", "1")])));
        assert!(!set.labels("label", &labels(&[("x", ""), ("y", "2")])));
        for (flags, left_out) in [
            (&["label!=x"][..], &["x", "both"][..]),
            (&["label!=y=1"], &["both"]),
            (&["label!=x", "label!=y"], &["both"]),
            (&["label=x", "label!=y"], &["none", "both"]),
        ] {
            let flags: Vec<String> = flags.iter().map(ToString::to_string).collect();
            let set = FilterSet::parse(&flags, &["label", "label!"]).unwrap();
            for (name, pairs) in [("none", &[][..]), ("x", &[("x", "")]), ("both", &[("x", "1"), ("y", "1")])] {
                assert_eq!(set.labels("label", &labels(pairs)), !left_out.contains(&name), "{flags:?} {name}");
            }
        }
        assert!(FilterSet::parse(&["bogus=1".into()], &["name"]).unwrap_err().contains("name"));
        assert!(FilterSet::parse(&["name".into()], &["name"]).is_err());
        let set = FilterSet::parse(&["role=boss".into()], &["role"]).unwrap();
        assert!(set.only("role", &["manager", "worker"]).unwrap_err().contains("role is one of manager, worker"));
    }
}
