//! The `bpf()` commands that aya has no safe call for: batches, links in place, raw map access.
//! What goes in and out of the kernel is made of integers only ([`Pod`]), so that any bytes are valid.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use aya::Pod;

use super::layout::MapLayout;

/// `enum bpf_cmd`, the part that is used.
#[repr(u32)]
#[derive(Clone, Copy)]
enum Command {
    MapCreate = 0,
    MapLookup = 1,
    MapUpdate = 2,
    MapDelete = 3,
    MapNextKey = 4,
    ObjPin = 6,
    ObjGet = 7,
    TestRun = 10,
    MapById = 14,
    InfoByFd = 15,
    MapLookupBatch = 24,
    MapUpdateBatch = 26,
    MapDeleteBatch = 27,
    LinkCreate = 28,
    LinkUpdate = 29,
    LinkDetach = 34,
}

/// Runs a command; `attr` is the part of `union bpf_attr` that it reads.
///
/// # Safety
/// Pointers in `attr` must be valid for what the command does with them.
unsafe fn bpf<T>(command: Command, attr: &mut T) -> io::Result<i32> {
    // SAFETY: `attr` is a live record of the size given; its pointers are the caller's promise.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command as u32, std::ptr::from_mut(attr), size_of::<T>())
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    i32::try_from(result).map_err(io::Error::other)
}

/// As [`bpf`], for commands that return a new descriptor.
///
/// # Safety
/// As [`bpf`].
unsafe fn bpf_fd<T>(command: Command, attr: &mut T) -> io::Result<OwnedFd> {
    // SAFETY: the caller's promise; the kernel gives the descriptor to us alone.
    unsafe { bpf(command, attr).map(|fd| OwnedFd::from_raw_fd(fd)) }
}

#[expect(clippy::cast_sign_loss, reason = "descriptors are not negative")]
fn raw(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd() as u32
}

#[repr(C)]
struct ElementAttr {
    map: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

fn element(map: BorrowedFd<'_>, key: u64, value: u64) -> ElementAttr {
    ElementAttr { map: raw(map), pad: 0, key, value, flags: 0 }
}

fn address<T>(of: &T) -> u64 {
    std::ptr::from_ref(of) as u64
}

/// Reads an element. `V` must have the size of the map's values.
pub(super) fn lookup<K: Pod, V: Pod + Default>(
    map: BorrowedFd<'_>,
    key: &K,
) -> io::Result<Option<V>> {
    let mut value = V::default();
    let mut attr = element(map, address(key), std::ptr::from_mut(&mut value) as u64);
    // SAFETY: key and value are live; any bytes are a `V`.
    match unsafe { bpf(Command::MapLookup, &mut attr) } {
        Ok(_) => Ok(Some(value)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Reads an element of a per-CPU map into a slice with a place for each possible CPU.
pub(super) fn lookup_per_cpu(map: BorrowedFd<'_>, key: u32, values: &mut [u64]) -> io::Result<()> {
    let mut attr = element(map, address(&key), values.as_mut_ptr() as u64);
    // SAFETY: the kernel writes one word per possible CPU, which is what callers bring room for.
    unsafe { bpf(Command::MapLookup, &mut attr) }.map(drop)
}

/// Writes an element of a per-CPU map, a word for each possible CPU.
pub(super) fn update_per_cpu(map: BorrowedFd<'_>, key: u32, values: &[u64]) -> io::Result<()> {
    let mut attr = element(map, address(&key), values.as_ptr() as u64);
    // SAFETY: the kernel reads one word per possible CPU, which is what callers bring.
    unsafe { bpf(Command::MapUpdate, &mut attr) }.map(drop)
}

/// Writes an element; `flags` say whether there may or must be one.
fn write<K: Pod, V: Pod>(map: BorrowedFd<'_>, key: &K, value: &V, flags: u64) -> io::Result<()> {
    let mut attr = ElementAttr { flags, ..element(map, address(key), address(value)) };
    // SAFETY: the kernel reads key and value, which are live.
    unsafe { bpf(Command::MapUpdate, &mut attr) }.map(drop)
}

/// Whether something was done that fails with `refusal` where it can't be.
fn unless(refusal: i32, done: io::Result<()>) -> io::Result<bool> {
    match done {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(refusal) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Writes an element.
pub(super) fn update<K: Pod, V: Pod>(map: BorrowedFd<'_>, key: &K, value: &V) -> io::Result<()> {
    write(map, key, value, 0)
}

/// Writes an element where there is none; whether there was none.
pub(super) fn insert<K: Pod, V: Pod>(map: BorrowedFd<'_>, key: &K, value: &V) -> io::Result<bool> {
    const BPF_NOEXIST: u64 = 1;
    unless(libc::EEXIST, write(map, key, value, BPF_NOEXIST))
}

/// Puts another value in the place of an element's; whether there is one.
pub(super) fn replace<K: Pod, V: Pod>(map: BorrowedFd<'_>, key: &K, value: &V) -> io::Result<bool> {
    const BPF_EXIST: u64 = 2;
    unless(libc::ENOENT, write(map, key, value, BPF_EXIST))
}

/// Removes an element; whether there was one.
pub(super) fn delete<K: Pod>(map: BorrowedFd<'_>, key: &K) -> io::Result<bool> {
    let mut attr = element(map, address(key), 0);
    // SAFETY: the kernel reads the key, which is live.
    unless(libc::ENOENT, unsafe { bpf(Command::MapDelete, &mut attr) }.map(drop))
}

/// The key after `key`, or the first one.
pub(super) fn next_key<K: Pod + Default>(
    map: BorrowedFd<'_>,
    key: Option<&K>,
) -> io::Result<Option<K>> {
    let mut next = K::default();
    let mut attr = element(map, key.map_or(0, address), std::ptr::from_mut(&mut next) as u64);
    // SAFETY: both keys are live; any bytes are a `K`.
    match unsafe { bpf(Command::MapNextKey, &mut attr) } {
        Ok(_) => Ok(Some(next)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

#[repr(C)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    element_flags: u64,
    flags: u64,
}

/// How far a batch went.
#[derive(Debug)]
pub(super) struct BatchError {
    /// Elements done before the one that failed.
    pub done: usize,
    /// Why that one failed.
    pub error: io::Error,
}

fn batch(
    command: Command,
    map: BorrowedFd<'_>,
    keys: u64,
    values: u64,
    count: usize,
) -> Result<(), BatchError> {
    let mut attr = BatchAttr {
        in_batch: 0,
        out_batch: 0,
        keys,
        values,
        count: u32::try_from(count).unwrap_or(u32::MAX),
        map: raw(map),
        element_flags: 0,
        flags: 0,
    };
    // SAFETY: callers bring `count` live keys and, where the command reads them, values.
    match unsafe { bpf(command, &mut attr) } {
        Ok(_) => Ok(()),
        Err(error) => Err(BatchError { done: attr.count as usize, error }),
    }
}

/// Writes elements in their order; `keys` and `values` have the same length.
pub(super) fn update_batch<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    keys: &[K],
    values: &[V],
) -> Result<(), BatchError> {
    let (k, v) = (keys.as_ptr() as u64, values.as_ptr() as u64);
    batch(Command::MapUpdateBatch, map, k, v, keys.len().min(values.len()))
}

/// Removes elements in their order; stops at one that is missing.
pub(super) fn delete_batch<K: Pod>(map: BorrowedFd<'_>, keys: &[K]) -> Result<(), BatchError> {
    batch(Command::MapDeleteBatch, map, keys.as_ptr() as u64, 0, keys.len())
}

/// What the kernel says of an operation that a kind of map does not have; of its own, and so in no
/// list of errors.
pub(super) const ENOTSUPP: i32 = 524;

/// Where a read in batches goes on: the kernel's own mark.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cursor {
    _mark: [u32; 16],
}

/// What a read in batches gave.
#[derive(Debug)]
pub(super) struct BatchRead {
    /// Elements read.
    pub count: usize,
    /// Where to go on; none at the end.
    pub next: Option<Cursor>,
}

/// Reads as many elements of a hash as there is room for in `keys` and `values`, which have the
/// same length. Elements that come or go meanwhile may be missed or met twice.
pub(super) fn lookup_batch<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    from: Option<&Cursor>,
    keys: &mut [K],
    values: &mut [V],
) -> io::Result<BatchRead> {
    let mut next = Cursor { _mark: [0; 16] };
    let mut attr = BatchAttr {
        in_batch: from.map_or(0, address),
        out_batch: std::ptr::from_mut(&mut next) as u64,
        keys: keys.as_mut_ptr() as u64,
        values: values.as_mut_ptr() as u64,
        count: u32::try_from(keys.len().min(values.len())).unwrap_or(u32::MAX),
        map: raw(map),
        element_flags: 0,
        flags: 0,
    };
    // SAFETY: there is room for `count` keys and values, and for the longest mark, a key.
    match unsafe { bpf(Command::MapLookupBatch, &mut attr) } {
        Ok(_) => Ok(BatchRead { count: attr.count as usize, next: Some(next) }),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
            Ok(BatchRead { count: attr.count as usize, next: None })
        }
        Err(error) => Err(error),
    }
}

/// Seconds since boot, without suspend: what programs get from `bpf_ktime_get_coarse_ns`.
pub(super) fn boot_seconds() -> io::Result<u32> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes a live record.
    if unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_COARSE, &raw mut time) } < 0 {
        return Err(io::Error::last_os_error());
    }
    u32::try_from(time.tv_sec).map_err(io::Error::other)
}

/// Nanoseconds since boot, without suspend: what programs get from `bpf_ktime_get_ns`.
pub(super) fn monotonic_ns() -> io::Result<u64> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes a live record.
    if unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let seconds = u64::try_from(time.tv_sec).map_err(io::Error::other)?;
    Ok(seconds * 1_000_000_000 + u64::try_from(time.tv_nsec).map_err(io::Error::other)?)
}

#[repr(C)]
struct CreateAttr {
    kind: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
    inner_map: u32,
    numa_node: u32,
    name: [u8; 16],
}

/// A new map.
pub(super) fn create_map(layout: &MapLayout) -> io::Result<OwnedFd> {
    let MapLayout { name: text, kind, key_size, value_size, flags, entries } = *layout;
    let mut name = [0; 16];
    // The kernel wants a zero at the end.
    for (octet, of) in name.iter_mut().take(15).zip(text.bytes()) {
        *octet = of;
    }
    let mut attr = CreateAttr {
        kind,
        key_size,
        value_size,
        max_entries: entries,
        flags,
        inner_map: 0,
        numa_node: 0,
        name,
    };
    // SAFETY: no pointers.
    unsafe { bpf_fd(Command::MapCreate, &mut attr) }
}

#[repr(C)]
struct ByIdAttr {
    id: u32,
    next: u32,
    flags: u32,
}

/// Opens the map that the kernel knows by this number.
pub(super) fn map_by_id(id: u32) -> io::Result<OwnedFd> {
    let mut attr = ByIdAttr { id, next: 0, flags: 0 };
    // SAFETY: no pointers.
    unsafe { bpf_fd(Command::MapById, &mut attr) }
}

#[repr(C)]
struct ObjectAttr {
    path: u64,
    fd: u32,
    flags: u32,
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}

/// Opens what is pinned at a path.
pub(super) fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let mut attr = ObjectAttr { path: path.as_ptr() as u64, fd: 0, flags: 0 };
    // SAFETY: the path is live and ends with a zero.
    unsafe { bpf_fd(Command::ObjGet, &mut attr) }
}

/// Pins a map, program or link at a path where nothing is.
pub(super) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    let mut attr = ObjectAttr { path: path.as_ptr() as u64, fd: raw(object), flags: 0 };
    // SAFETY: the path is live and ends with a zero.
    unsafe { bpf(Command::ObjPin, &mut attr) }.map(drop)
}

#[repr(C)]
struct TestRunAttr {
    program: u32,
    result: u32,
    size_in: u32,
    size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
}

/// What a run of a program gave.
#[derive(Debug)]
pub(super) struct Ran {
    /// What the program returned.
    pub result: u32,
    /// Bytes of the packet afterwards.
    pub length: usize,
    /// Average time of one run.
    pub nanoseconds: u32,
}

/// Runs a packet program on a packet.
pub(super) fn test_run(
    program: BorrowedFd<'_>,
    packet: &[u8],
    after: &mut [u8],
    repeat: u32,
) -> io::Result<Ran> {
    let size = |slice: &[u8]| u32::try_from(slice.len()).map_err(io::Error::other);
    let mut attr = TestRunAttr {
        program: raw(program),
        result: 0,
        size_in: size(packet)?,
        size_out: size(after)?,
        data_in: packet.as_ptr() as u64,
        data_out: after.as_mut_ptr() as u64,
        repeat,
        duration: 0,
    };
    // SAFETY: both buffers are live and of the lengths given.
    unsafe { bpf(Command::TestRun, &mut attr) }?;
    Ok(Ran { result: attr.result, length: attr.size_out as usize, nanoseconds: attr.duration })
}

#[repr(C)]
struct InfoAttr {
    fd: u32,
    length: u32,
    info: u64,
}

fn info<T: Default>(object: BorrowedFd<'_>) -> io::Result<T> {
    let mut info = T::default();
    let length = u32::try_from(size_of::<T>()).map_err(io::Error::other)?;
    let mut attr = InfoAttr { fd: raw(object), length, info: std::ptr::from_mut(&mut info) as u64 };
    // SAFETY: the kernel writes at most `length` bytes to a live record of integers.
    unsafe { bpf(Command::InfoByFd, &mut attr) }?;
    Ok(info)
}

/// The beginning of `struct bpf_map_info`.
#[repr(C)]
#[derive(Debug, Default)]
pub(super) struct MapInfo {
    /// `enum bpf_map_type`.
    pub kind: u32,
    /// The kernel's id.
    pub id: u32,
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value.
    pub value_size: u32,
    /// How many entries it holds.
    pub max_entries: u32,
    /// Flags it was created with.
    pub flags: u32,
}

/// What the kernel knows of a map.
pub(super) fn map_info(map: BorrowedFd<'_>) -> io::Result<MapInfo> {
    info(map)
}

/// `struct bpf_link_info` as links to a cgroup or an interface fill it.
#[repr(C)]
#[derive(Debug, Default)]
pub(super) struct LinkInfo {
    /// `enum bpf_link_type`.
    pub kind: u32,
    /// The kernel's id; that of a link stays when its program is replaced.
    pub id: u32,
    /// The program's id.
    pub program: u32,
    pad: u32,
    /// Words that the kind of link gives a meaning to.
    target: [u32; 4],
}

impl LinkInfo {
    /// The cgroup of a link to a cgroup; 0 when it was detached.
    pub(super) fn cgroup(&self) -> u64 {
        u64::from(self.target[1]) << 32 | u64::from(self.target[0])
    }

    /// The interface of a tcx link; 0 when it was detached or the interface is gone.
    pub(super) fn ifindex(&self) -> u32 {
        self.target[0]
    }
}

/// What the kernel knows of a link.
pub(super) fn link_info(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    info(link)
}

#[repr(C)]
struct LinkCreateAttr {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
    /// Enough for what every kind of link reads behind; zero is each one's default.
    rest: [u64; 2],
}

/// Attaches a program to a cgroup (its descriptor) or an interface (its index).
pub(super) fn create_link(
    program: BorrowedFd<'_>,
    target: u32,
    attach_type: u32,
) -> io::Result<OwnedFd> {
    let mut attr =
        LinkCreateAttr { program: raw(program), target, attach_type, flags: 0, rest: [0; 2] };
    // SAFETY: no pointers.
    unsafe { bpf_fd(Command::LinkCreate, &mut attr) }
}

#[repr(C)]
struct LinkUpdateAttr {
    link: u32,
    new_program: u32,
    flags: u32,
    old_program: u32,
}

/// Puts another program in the place of a link's, at once for every packet and call that follows.
pub(super) fn update_link(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr =
        LinkUpdateAttr { link: raw(link), new_program: raw(program), flags: 0, old_program: 0 };
    // SAFETY: no pointers.
    unsafe { bpf(Command::LinkUpdate, &mut attr) }.map(drop)
}

/// Takes a link's program from its place, at once for every packet and call that follows. The link
/// goes with its last pin and descriptor.
pub(super) fn detach_link(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = raw(link);
    // SAFETY: no pointers.
    unsafe { bpf(Command::LinkDetach, &mut attr) }.map(drop)
}

/// The number by which the kernel knows this thread's network namespace (`SO_NETNS_COOKIE`).
pub fn netns_cookie() -> io::Result<u64> {
    let socket = std::os::unix::net::UnixDatagram::unbound()?;
    let mut cookie = 0_u64;
    let mut length: libc::socklen_t = 8;
    // SAFETY: the kernel writes at most `length` bytes to a live word.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            std::ptr::from_mut(&mut cookie).cast(),
            &raw mut length,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(cookie) }
}
