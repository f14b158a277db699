//! Mizzen's own container images: the programs behind their names.
//!
//! The process runtime has no registry and nothing to unpack: a container without a `command` must
//! name an image of [`TABLE`], and then runs `mizzen-control-plane image NAME`. For container
//! runtimes `cargo xtask` makes OCI images of the static program `mizzen-image`.

mod hello;
mod hello_udp;
mod pause;

use std::process::ExitCode;

/// An image: a name that a pod may give, and the program behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Image {
    /// The name, without tag.
    pub name: &'static str,
    /// What it does, for messages and help.
    pub about: &'static str,
    /// Which program runs.
    program: Program,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Program {
    Hello,
    Pause,
}

/// Every image that exists.
pub const TABLE: &[Image] = &[
    Image {
        name: "hello",
        about: "an HTTP and UDP server that says which pod answered whom",
        program: Program::Hello,
    },
    Image { name: "pause", about: "waits until it is told to stop", program: Program::Pause },
];

/// The image that `reference` names: the bare name, or with the tag `latest`.
pub fn find(reference: &str) -> Option<&'static Image> {
    let name = reference.strip_suffix(":latest").unwrap_or(reference);
    TABLE.iter().find(|image| image.name == name)
}

/// The names of all images, for messages: `hello, pause`.
pub fn names() -> String {
    TABLE.iter().map(|image| image.name).collect::<Vec<_>>().join(", ")
}

/// `mizzen-control-plane image NAME`: runs one of our own images.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Name of the image: hello or pause
    pub name: String,
}

/// Runs the image until SIGTERM or SIGINT.
pub fn main(args: &Args) -> ExitCode {
    let Some(image) = find(&args.name) else {
        eprintln!("error: there is no image {:?}; there are {}", args.name, names());
        return ExitCode::from(2);
    };
    let outcome =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map(|runtime| {
            runtime.block_on(async {
                match image.program {
                    Program::Hello => hello::serve(hello::Config::from_env()?).await,
                    Program::Pause => pause::wait().await,
                }
            })
        });
    match outcome {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("error: no asynchronous runtime: {error}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_found_by_its_bare_name_or_as_latest() {
        assert_eq!(find("hello").map(|image| image.name), Some("hello"));
        assert_eq!(find("hello:latest").map(|image| image.name), Some("hello"));
        for unknown in ["", "hello:1", "library/hello", "nginx", "Hello", ":latest"] {
            assert_eq!(find(unknown), None, "{unknown}");
        }
    }

    #[test]
    fn the_names_of_a_message_are_the_whole_table() {
        assert_eq!(names(), "hello, pause");
    }
}
