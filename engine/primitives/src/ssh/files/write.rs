//! `write_file`: content that the runbook has.

use async_trait::async_trait;
use runbook_core::primitive::{Cx, Outcome, Primitive};
use runbook_core::spec::{Call, Effect, Spec, Ty};
use runbook_core::{Result, Value};

use super::{file_options, put};

/// `Host.write_file`.
pub(super) struct WriteFile {
    spec: Spec,
}

impl Default for WriteFile {
    fn default() -> Self {
        let spec = Spec::method(
            "Host",
            "write_file",
            Effect::Converge,
            "Brings a file to this content, at one stroke; there is nothing to do when content, mode and owner are so already. \
             Gives whether anything was changed.\n\nMissing folders are made. A symbolic link is followed.",
        )
        .arg("path", Ty::Str, "The file; relative to the login's home folder.")
        .arg("content", Ty::OneOf(vec![Ty::Str, Ty::Blob, Ty::Secret]), "What it shall hold.")
        .example(r#"host("new").write_file("/etc/motd", "moved on Sunday\n", #{ mode: "0644", sudo: true });"#);
        WriteFile { spec: file_options(spec) }
    }
}

#[async_trait]
impl Primitive for WriteFile {
    fn spec(&self) -> &Spec {
        &self.spec
    }

    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        let content = match call.arg(1) {
            Value::Blob(b) => b.clone(),
            Value::Secret(s) => {
                cx.redactor.add(s.reveal());
                s.reveal().as_bytes().to_vec()
            }
            other => other.as_str().unwrap_or("").as_bytes().to_vec(),
        };
        put::put(cx, call, call.str(0), content).await
    }
}
