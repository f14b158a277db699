//! Files of the data folder (`dataDir`), which outlive a reboot: written in one step and for good,
//! and read only where nobody but root and this process may write them.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::Path,
};

/// What a file holds, of it `max` octets; `None` where there is none. One that others may write is an
/// error.
pub fn read(path: &Path, max: u64) -> io::Result<Option<String>> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let metadata = file.metadata()?;
    let own = [0, nix::unistd::geteuid().as_raw()].contains(&metadata.uid());
    if !own || metadata.mode() & 0o022 != 0 {
        let why = "others than root may write it; remove it";
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
    }
    let mut text = String::new();
    file.take(max).read_to_string(&mut text)?;
    Ok(Some(text))
}

/// Puts `content` at `path`, whose folder is made where it is not there: a reader sees the old or the
/// new file, whole, after a loss of power too.
pub fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = folder.join(format!(".{name}.next"));
    DirBuilder::new().recursive(true).mode(0o755).create(folder)?;
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    File::open(folder)?.sync_all()
}
