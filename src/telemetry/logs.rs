//! Logs go to standard error, so that standard output stays what a command was asked for.

use std::io::IsTerminal;

use clap::ValueEnum;
use tracing_subscriber::EnvFilter;

/// How a line of log looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line, for collectors.
    Json,
}

/// What is logged, and how.
#[derive(Clone, Debug, PartialEq, Eq, clap::Args)]
pub struct LogOptions {
    /// How log lines look
    #[arg(long, value_enum, default_value_t = LogFormat::Text, env = "STAGENET_LOG_FORMAT", help_heading = "Logging")]
    pub log_format: LogFormat,

    /// Least severe level that is logged: error, warn, info, debug, trace; or a filter such as `info,stagenet::host=debug`
    #[arg(long, value_name = "LEVEL", default_value = "info", env = "STAGENET_LOG_LEVEL", value_parser = parse_filter, help_heading = "Logging")]
    pub log_level: String,
}

/// What the field `object` of a log line says: the one name under which every line about an object of the cluster can be found, `Kind namespace/name`, or
/// `Kind name` where the kind has no namespaces. Statuses and messages write objects the same way.
pub fn object_key(kind: &str, namespace: Option<&str>, name: &str) -> String {
    match namespace.filter(|namespace| !namespace.is_empty()) {
        Some(namespace) => format!("{kind} {namespace}/{name}"),
        None => format!("{kind} {name}"),
    }
}

/// An error with everything that caused it, in one line. What a message says already is not said again.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

fn parse_filter(text: &str) -> Result<String, String> {
    EnvFilter::try_new(text)
        .map(|_| text.to_owned())
        .map_err(|e| format!("{e}; must be error, warn, info, debug, trace or a filter such as \"info,stagenet::host=debug\""))
}

/// Starts logging. Called once, by the commands that run on; a second call changes nothing.
pub fn init(options: &LogOptions) {
    // The client logs every failed request as an error, without saying which; whoever made the request says it better.
    let quiet = if options.log_level.contains("kube_client") {
        ""
    } else {
        ",kube_client=off"
    };
    let filter = EnvFilter::try_new(format!("{}{quiet}", options.log_level)).unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false);
    // An error here only says that logging has been started before, which is what is wanted.
    let _ = match options.log_format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().flatten_event(true).with_target(true).try_init(),
    };
}
