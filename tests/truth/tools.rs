//! The programs of `tests/testbed/judges.sh`, each asked by a line and answering by a line.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::{Value, json};

use stagenet::api::reasons;

use crate::lab::Ns;

/// Builds the programs if need be and returns their folder.
pub fn built() -> PathBuf {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/testbed/judges.sh");
    let built = Command::new(script).stderr(Stdio::inherit()).output().unwrap();
    assert!(built.status.success(), "tests/testbed/judges.sh: {}; it needs Go", built.status);
    PathBuf::from(String::from_utf8(built.stdout).unwrap().trim())
}

/// A program that answers lines. Ended when dropped.
struct Lines {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Lines {
    fn start(command: &mut Command) -> Self {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        Self {
            input: child.stdin.take().unwrap(),
            output: BufReader::new(child.stdout.take().unwrap()),
            child,
        }
    }

    fn ask(&mut self, question: &Value) -> Value {
        writeln!(self.input, "{question}").unwrap();
        let mut answer = String::new();
        self.output.read_line(&mut answer).unwrap();
        serde_json::from_str(&answer).unwrap_or_else(|e| panic!("no answer to {question}: {e}"))
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// kstatus and Flux' checker of conditions.
pub struct Judges(Lines);

impl Judges {
    /// What is bad by being True they are told by the product, so that no type can be forgotten.
    pub fn seated(folder: &Path) -> Self {
        let negative: Vec<&str> = reasons::negative().collect();
        Self(Lines::start(
            Command::new(folder.join("judges")).args(["--negative", &negative.join(",")]),
        ))
    }

    /// kstatus' word for an object, after both judges found its conditions in order.
    pub fn kstatus(&mut self, object: &Value) -> Result<String, String> {
        let mut object = object.clone();
        if object["metadata"]["managedFields"].is_null() {
            object["metadata"].as_object_mut().unwrap().remove("managedFields");
        }
        let verdict = self.0.ask(&object);
        let clean = verdict["error"].is_null() && verdict["fails"] == json!([]) && verdict["warns"] == json!([]);
        let word = verdict["kstatus"].as_str().unwrap_or_default().to_owned();
        if clean {
            Ok(word)
        } else {
            Err(format!("the judges say {verdict}"))
        }
    }
}

/// The proxy between the product and the API server.
pub struct Faults(Lines);

impl Faults {
    /// Where it listens, instead of the API server's 6443.
    pub const PORT: &'static str = "7443";

    pub fn between(folder: &Path, host: &Ns) -> Self {
        let mut command = Command::new(folder.join("faults"));
        let certificate = "/run/lab/api/certs/apiserver";
        command.args([
            "--listen",
            &format!("10.99.0.1:{}", Self::PORT),
            "--target",
            "https://10.99.0.1:6443",
        ]);
        command.args([
            "--certificate",
            &format!("{certificate}.crt"),
            "--key",
            &format!("{certificate}.key"),
        ]);
        Self(host.enter(|| Lines::start(&mut command)))
    }

    /// From now on do this and nothing else. Returns what went by since the order before.
    pub fn order(&mut self, order: &Value) -> Value {
        self.0.ask(order)
    }

    /// From now on everything goes through.
    pub fn none(&mut self) {
        self.order(&json!({}));
    }

    /// The watches that ended by no will of their clients and are not open again.
    pub fn owed(&mut self) -> Value {
        self.order(&json!({"look": true}))["owed"].take()
    }
}
