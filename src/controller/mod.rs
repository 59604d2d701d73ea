//! The controller: verdicts and reports into status.
