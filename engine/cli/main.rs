//! The command line.

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.first().is_some_and(|a| a == "__helper") {
        std::process::exit(runbook_primitives::db::helper_main(&args));
    }
}
