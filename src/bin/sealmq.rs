//! The `sealmq` program: the broker, and the health check of a container's probe.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use sealmq::server::config::Sources;
use sealmq::server::run::{Accepted, RunError, run};
use sealmq::server::{Config, hardening, healthcheck, logging};

// Gives memory back to the system within about a second of its being freed (.cargo/config.toml), RocksDB's as well.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// An AMQPS-first message broker that RabbitMQ's clients use unchanged; everything it stores is sealed.
#[derive(Parser)]
#[command(name = "sealmq", version)]
struct Arguments {
    /// configuration in rabbitmq.conf's format; repeated, later files win
    #[arg(long, value_name = "FILE", global = true)]
    config: Vec<PathBuf>,
    /// start although the store's anchor is lost or tells of a later commit, if the store ends with this one
    #[arg(long, value_name = "SEQ")]
    accept_rollback: Option<u64>,
    /// start although queues do not hold what was committed; what is there is served, and the rest reported
    #[arg(long)]
    quarantine: bool,
    /// read the key for data at rest from this inherited descriptor (at_rest.kek.fd)
    #[arg(long, value_name = "NUMBER")]
    kek_fd: Option<u32>,
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Subcommand)]
enum Verb {
    /// exit 0 when the broker on this host serves and its store is writable
    Healthcheck,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = match arguments.verb {
        None => {
            let accepted = Accepted { rollback: arguments.accept_rollback, quarantine: arguments.quarantine };
            serve(arguments.config, arguments.kek_fd, accepted)
        }
        Some(Verb::Healthcheck) => check(arguments.config),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sealmq: {error}");
            ExitCode::from(error.exit_status())
        }
    }
}

fn serve(config: Vec<PathBuf>, kek_fd: Option<u32>, accepted: Accepted) -> Result<(), RunError> {
    let hardened = hardening::apply();
    let mut sources = Sources::of_process(config);
    let kek_fd = kek_fd.map(|number| ("--kek-fd".into(), "at_rest.kek.fd".into(), number.to_string()));
    sources.key_flags.extend(kek_fd);
    let config = Config::load(&sources)?;
    logging::start(&config.log)?;
    logging::tell(&hardened);
    run(&config, accepted).map(drop)
}

fn check(config: Vec<PathBuf>) -> Result<(), RunError> {
    let config = Config::load(&Sources::of_process(config))?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(RunError::System)?;
    runtime.block_on(healthcheck(&config))?;
    Ok(())
}
