//! A steady stream of requests in the background of a test, and what became of each.

use std::{
    fs,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use serde_json::Value;

use crate::{Lab, fixture};

/// Requests being sent; [`Load::stop`] ends them and gives the answers.
pub struct Load {
    child: Child,
    stop_file: PathBuf,
    output: PathBuf,
    _folder: tempfile::TempDir,
}

impl Load {
    /// Asks `url` from `node` every `interval` over a new connection each time, for at most `limit`.
    #[must_use]
    pub fn start(lab: &Lab, node: &str, url: &str, interval: Duration, limit: Duration) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (stop_file, output) = (folder.path().join("stop"), folder.path().join("answers"));
        let script = fixture("load.py");
        let (interval, limit) = (interval.as_millis().to_string(), limit.as_secs().to_string());
        let args = ["python3", path(&script), url, &interval, path(&stop_file), &limit];
        let child = Self::command(lab, node, &args)
            .stdin(Stdio::null())
            .stdout(fs::File::create(&output).expect("a file for the answers"))
            .spawn()
            .expect("starting the load");
        Self { child, stop_file, output, _folder: folder }
    }

    fn command(lab: &Lab, node: &str, args: &[&str]) -> Command {
        lab.exec_command(node, args)
    }

    /// Answers so far.
    #[must_use]
    pub fn so_far(&self) -> usize {
        fs::read_to_string(&self.output).unwrap_or_default().lines().count()
    }

    /// What has been answered so far, or has failed.
    #[must_use]
    pub fn answers_so_far(&self) -> Vec<Value> {
        let text = fs::read_to_string(&self.output).unwrap_or_default();
        // The last line may be half written.
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Ends the stream once every request has an answer or has failed.
    #[must_use]
    pub fn stop(mut self) -> Vec<Value> {
        fs::write(&self.stop_file, "").expect("the stop file");
        let status = self.child.wait().expect("waiting for the load");
        assert!(status.success(), "the load ended with {status}");
        let text = fs::read_to_string(&self.output).expect("the answers");
        text.lines().map(|line| serde_json::from_str(line).expect("an answer is JSON")).collect()
    }
}

fn path(path: &std::path::Path) -> &str {
    path.to_str().expect("utf-8 path")
}

/// The requests that did not get status 200.
#[must_use]
pub fn failures(answers: &[Value]) -> Vec<&Value> {
    answers.iter().filter(|answer| answer["status"] != 200).collect()
}
