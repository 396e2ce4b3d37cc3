//! The shim alone, for tests of the runtime: `shim FOLDER`. In the product it is `orch shim FOLDER`.

fn main() {
    let Some(folder) = std::env::args_os().nth(1) else {
        eprintln!("usage: shim FOLDER");
        std::process::exit(2);
    };
    std::process::exit(orch_worker::shim::main(std::path::Path::new(&folder)));
}
