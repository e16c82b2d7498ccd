//! A downtime window over its budget: what the runbook's `on_overrun` does, with and without a person.

use crate::support::desk::{INVENTORY, Project};

fn project(on_overrun: &str) -> Project {
    let runbook = format!(
        "downtime \"Cutover\" #{{ budget: \"500ms\"{on_overrun} }} {{\n\
           step \"Slow\" {{ sleep(\"900ms\"); }} undo {{ log(\"took back\"); }}\n\
           step \"Rest\" {{ log(\"the rest\"); }}\n\
         }}"
    );
    Project::new(INVENTORY, &runbook)
}

/// The name of the user who runs the tests.
fn me() -> String {
    let out = std::process::Command::new("id").arg("-un").output().unwrap();
    String::from_utf8(out.stdout).unwrap().trim().to_string()
}

fn logged(p: &Project) -> Vec<String> {
    p.entries("log").iter().map(|e| e["message"].as_str().unwrap().to_string()).collect()
}

#[test]
fn the_runbook_decides() {
    for (setting, status, decision, by, log) in [
        (", on_overrun: \"continue\"", 0, "continue", "the runbook", "the rest"),
        (", on_overrun: \"rollback\"", 6, "rollback", "the runbook", "took back"),
        // Nobody can be asked: users wait for nobody.
        ("", 0, "continue", "nobody was there to ask", "the rest"),
    ] {
        let p = project(setting);
        let text = p.expect(&["run", "a.rhai"], status);
        let overrun = p.entries("window_overrun");
        assert_eq!(overrun.len(), 1, "{text}");
        assert_eq!((overrun[0]["decision"].as_str(), overrun[0]["by"].as_str()), (Some(decision), Some(by)), "{setting}");
        assert_eq!(logged(&p), [log], "{setting}");
        assert!(text.contains("overrun") && text.contains(&format!("{decision} ({by})")), "{text}");
    }
}

#[test]
fn a_person_decides() {
    for (answer, status, decision, log) in [("g", 0, "continue", "the rest"), ("b", 6, "rollback", "took back")] {
        let p = project("");
        let mut s = p.screen(&["run", "a.rhai"], 24, 100);
        s.wait_for("\"Cutover\" is open for ");
        s.answer("its budget is 500ms  [g]o on, roll [b]ack:", answer);
        assert_eq!(s.wait(), status, "{}", s.text());
        assert_eq!(p.entries("window_overrun")[0]["decision"], decision);
        assert_eq!(p.entries("window_overrun")[0]["by"], me(), "the record names the person");
        assert_eq!(logged(&p), [log]);
    }
}

#[test]
fn the_flag_yes_decides_and_is_on_record() {
    let p = project("");
    let text = p.expect(&["run", "a.rhai", "--yes"], 0);
    assert_eq!(p.entries("window_overrun")[0]["by"], format!("{} (--yes)", me()), "{text}");
}

#[test]
fn ctrl_c_at_the_question_decides_nothing() {
    let p = project("");
    let mut s = p.screen(&["run", "a.rhai"], 24, 100);
    s.wait_for("[g]o on, roll [b]ack:");
    s.keys("\x03");
    assert_eq!(s.wait(), 130, "{}", s.text());
    assert_eq!(p.entries("window_overrun").len(), 0, "it will be asked again");
    let shown = p.expect(&["show"], 0);
    assert!(shown.contains("The window \"Cutover\" is open since"), "{shown}");
    let mut s = p.screen(&["resume"], 24, 100);
    s.answer("[g]o on, roll [b]ack:", "b");
    assert_eq!(s.wait(), 6, "{}", s.text());
}
