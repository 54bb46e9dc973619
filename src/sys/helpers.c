// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Kernel functions that only exist as inline functions or macros, and C
 * sequences that would be harder to read in Rust. See helpers.h.
 */
#include "helpers.h"

/* --- includes of the block half --- */
#include <linux/atomic.h>
#include <linux/ctype.h>
#include <linux/fs.h>
#include <linux/kallsyms.h>
#include <linux/list.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/percpu.h>
#include <linux/rcupdate.h>
#include <linux/sched.h>
#include <linux/sched/mm.h>
#include <linux/sched/rt.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/uaccess.h>
#include <linux/vmalloc.h>
#include <linux/wait.h>
#include <linux/wait_bit.h>
#include <trace/events/block.h>
/* --- includes of the other half --- */
#include <linux/cred.h>
#include <linux/dcache.h>
#include <linux/fadvise.h>
#include <linux/falloc.h>
#include <linux/file.h>
#include <linux/fs_struct.h>
#include <linux/kthread.h>
#include <linux/log2.h>
#include <linux/magic.h>
#include <linux/mount.h>
#include <linux/mutex.h>
#include <linux/namei.h>
#include <linux/netdevice.h>
#include <linux/statfs.h>
#include <linux/stop_machine.h>
#include <linux/stringhash.h>
#include <linux/tcp.h>
#include <linux/uio.h>
#include <linux/utsname.h>
#include <net/sock.h>

/*
 * Kernel threads live in an empty file system: each lookup has to be made in
 * init's. And whoever runs us, files belong to the kernel.
 */
#define scoped_mars_lookup() scoped_with_kernel_creds() scoped_with_init_fs()

/* --- block: memory --- */

/*
 * Pages for when there are none: writing data back is what makes memory free,
 * and needs some. Not a mempool_t, because buffers may outlive
 * mars_c_block_exit(), and then give their pages back to the kernel.
 */
#define MARS_RESERVE_PAGES 512

static struct {
	spinlock_t lock;	/* protects the list and the count */
	wait_queue_head_t wait;
	void *first;		/* each page begins with the next one's address */
	unsigned int missing;
} mars_reserve = {
	.lock = __SPIN_LOCK_UNLOCKED(mars_reserve.lock),
	.wait = __WAIT_QUEUE_HEAD_INITIALIZER(mars_reserve.wait),
};

static void *mars_reserve_take(void)
{
	void *page;

	guard(spinlock_irqsave)(&mars_reserve.lock);
	page = mars_reserve.first;
	if (page) {
		mars_reserve.first = *(void **)page;
		mars_reserve.missing++;
	}
	return page;
}

static bool mars_reserve_give(void *page)
{
	scoped_guard(spinlock_irqsave, &mars_reserve.lock) {
		if (!mars_reserve.missing)
			return false;
		mars_reserve.missing--;
		*(void **)page = mars_reserve.first;
		mars_reserve.first = page;
	}
	wake_up(&mars_reserve.wait);
	return true;
}

/* Ends the reserve; what is out is not taken back. */
static void mars_reserve_exit(void)
{
	void *page;

	scoped_guard(spinlock_irqsave, &mars_reserve.lock) {
		page = mars_reserve.first;
		mars_reserve.first = NULL;
		mars_reserve.missing = 0;
	}
	while (page) {
		void *next = *(void **)page;

		kfree(page);
		page = next;
	}
}

static int mars_reserve_init(unsigned int pages)
{
	while (pages--) {
		void *page = kmalloc(PAGE_SIZE, GFP_KERNEL);

		if (!page) {
			mars_reserve_exit();
			return -ENOMEM;
		}
		scoped_guard(spinlock_irqsave, &mars_reserve.lock)
			mars_reserve.missing++;
		mars_reserve_give(page);
	}
	return 0;
}

/*
 * Payload memory: addressable by bios, 512-aligned, page-aligned from one page
 * on. Never starts I/O, and leaves the kernel's own reserves alone.
 *
 * Up to one page, with @wait, it waits until there is memory; *reserved then says
 * where it came from. More than a few contiguous pages are tried without reclaim, so
 * that nobody waits for compaction, and then mapped page by page; that fails
 * when memory is short. Without @wait there is no reclaim: who takes shorter and
 * shorter pieces would do so for each length.
 */
static void *mars_buf_alloc(size_t len, bool zero, bool wait, bool *reserved)
{
	gfp_t gfp = GFP_NOIO | __GFP_NOWARN | __GFP_NOMEMALLOC | __GFP_NORETRY |
		    (zero ? __GFP_ZERO : 0);
	size_t size = ALIGN(len, SECTOR_SIZE);
	void *addr;

	*reserved = false;
	if (!wait)
		gfp &= ~__GFP_DIRECT_RECLAIM;
	if (len > PAGE_SIZE) {
		gfp_t fast = gfp;

		if (get_order(len) > PAGE_ALLOC_COSTLY_ORDER)
			fast &= ~__GFP_DIRECT_RECLAIM;
		addr = alloc_pages_exact(len, fast);
		/* It has no way to leave the kernel's reserves alone. */
		if (!addr && !(current->flags & PF_MEMALLOC))
			addr = __vmalloc(len, gfp & ~__GFP_NOMEMALLOC);
		return addr;
	}
	for (;;) {
		addr = kmalloc(size, gfp);
		if (addr || !wait)
			return addr;
		addr = mars_reserve_take();
		if (addr) {
			*reserved = true;
			if (zero)
				memset(addr, 0, size);
			return addr;
		}
		wait_event_timeout(mars_reserve.wait, READ_ONCE(mars_reserve.first), HZ / 10);
	}
}

/* What all buffers have: a sum for each processor, of which only all together mean something. */
static DEFINE_PER_CPU(long, mars_buf_bytes);

static size_t mars_buf_size(size_t len)
{
	return len > PAGE_SIZE ? PAGE_ALIGN(len) : ALIGN(len, SECTOR_SIZE);
}

size_t mars_c_buf_bytes(void)
{
	long sum = 0;
	int cpu;

	for_each_possible_cpu(cpu)
		sum += READ_ONCE(*per_cpu_ptr(&mars_buf_bytes, cpu));
	return max(sum, 0L);
}

void *mars_c_buf_alloc(size_t len, bool zero, bool wait, bool *reserved)
{
	void *addr = mars_buf_alloc(len, zero, wait, reserved);

	if (addr)
		this_cpu_add(mars_buf_bytes, mars_buf_size(len));
	return addr;
}

/* @len and @reserved are those of mars_c_buf_alloc(). */
void mars_c_buf_free(void *addr, size_t len, bool reserved)
{
	this_cpu_sub(mars_buf_bytes, mars_buf_size(len));
	if (len <= PAGE_SIZE) {
		/* A whole page does as well, whether it came from there or not. */
		if (reserved || (READ_ONCE(mars_reserve.missing) && len > PAGE_SIZE - SECTOR_SIZE)) {
			if (mars_reserve_give(addr))
				return;
		}
		kfree(addr);
	} else if (!is_vmalloc_addr(addr)) {
		free_pages_exact(addr, len);
	} else if (in_atomic() || irqs_disabled()) {
		kvfree_atomic(addr);
	} else {
		vfree(addr);
	}
}

unsigned int mars_c_reserves_save(void)
{
	return memalloc_noreclaim_save();
}

void mars_c_reserves_restore(unsigned int flags)
{
	memalloc_noreclaim_restore(flags);
}

/*
 * Reclaim, or somebody else whose work makes memory free. Our own threads only
 * have PF_MEMALLOC_NOIO.
 */
bool mars_c_in_reclaim(void)
{
	return current->flags & PF_MEMALLOC;
}

/* Not xfsaild, which has PF_MEMALLOC all its life. */
bool mars_c_reclaims(void)
{
	return current->reclaim_state;
}

unsigned int mars_c_noio_save(void)
{
	return memalloc_noio_save();
}

void mars_c_noio_restore(unsigned int flags)
{
	memalloc_noio_restore(flags);
}

/* --- block: bio --- */

static struct bio_set mars_bio_set;

/* Disks and opened block devices whose end mars_c_block_exit() awaits. */
static atomic_t mars_block_users = ATOMIC_INIT(0);

static void mars_block_put(void)
{
	if (atomic_dec_and_test(&mars_block_users))
		wake_up_var(&mars_block_users);
}

int mars_c_block_init(void)
{
	int err;

	if (bioset_initialized(&mars_bio_set))
		return -EBUSY;
	err = mars_reserve_init(MARS_RESERVE_PAGES);
	if (err)
		return err;
	err = bioset_init(&mars_bio_set, BIO_POOL_SIZE, 0, BIOSET_NEED_BVECS);
	if (err)
		mars_reserve_exit();
	return err;
}

void mars_c_block_exit(void)
{
	wait_var_event(&mars_block_users, !atomic_read(&mars_block_users));
	/*
	 * The last ->free_disk or ->bi_end_io may not have returned from our
	 * text yet: neither in an interrupt nor in a preempted task.
	 */
	synchronize_rcu();
	synchronize_rcu_tasks();
	bioset_exit(&mars_bio_set);
	mars_reserve_exit();
}

/*
 * Inside ->submit_bio, bios are only queued until it returns: waiting for one
 * would never end.
 */
bool mars_c_may_wait_for_io(void)
{
	return !WARN_ON_ONCE(current->bio_list);
}

/*
 * ->bi_cookie belongs to bios that are polled, which the block layer does not
 * hand to disks without BLK_FEAT_POLL. So it can keep the start time while the
 * bio is ours, without memory of our own.
 */
void mars_c_bio_start(struct bio *bio)
{
	u32 start = jiffies;

	bio->bi_cookie = BLK_QC_T_NONE;
	if (!blk_queue_io_stat(bdev_get_queue(bio->bi_bdev)))
		return;
	bio_start_io_acct(bio);
	bio->bi_cookie = start == BLK_QC_T_NONE ? start - 1 : start;
}

void mars_c_bio_end_acct(struct bio *bio)
{
	u32 elapsed = (u32)jiffies - bio->bi_cookie;

	if (bio->bi_cookie == BLK_QC_T_NONE)
		return;
	bio->bi_cookie = BLK_QC_T_NONE;
	bio_end_io_acct(bio, jiffies - elapsed);
}

static struct bvec_iter mars_bio_part(struct bio *bio, unsigned int off, unsigned int len)
{
	struct bvec_iter iter = bio->bi_iter;

	bio_advance_iter(bio, &iter, off);
	iter.bi_size = len;
	return iter;
}

/* For all three: @bio has data, and @off + @len lies within it. */
void mars_c_bio_read(struct bio *bio, unsigned int off, void *to, unsigned int len)
{
	struct bvec_iter iter;
	struct bio_vec bv;

	__bio_for_each_segment(bv, bio, iter, mars_bio_part(bio, off, len)) {
		memcpy_from_bvec(to, &bv);
		to += bv.bv_len;
	}
}

void mars_c_bio_write(struct bio *bio, unsigned int off, const void *from, unsigned int len)
{
	struct bvec_iter iter;
	struct bio_vec bv;

	__bio_for_each_segment(bv, bio, iter, mars_bio_part(bio, off, len)) {
		memcpy_to_bvec(&bv, from);
		from += bv.bv_len;
	}
}

void mars_c_bio_zero(struct bio *bio, unsigned int off, unsigned int len)
{
	struct bvec_iter iter;
	struct bio_vec bv;

	__bio_for_each_segment(bv, bio, iter, mars_bio_part(bio, off, len))
		memzero_bvec(&bv);
}

void mars_c_bio_remap(struct bio *bio, struct block_device *bdev)
{
	dev_t from = bio_dev(bio);

	/* Counted, but without a duration: that would need a clone. */
	mars_c_bio_end_acct(bio);
	bio_set_dev(bio, bdev);
	trace_block_bio_remap(bio, from, bio->bi_iter.bi_sector);
	submit_bio_noacct(bio);
}

int mars_c_bio_read_through(struct bio *bio, struct block_device *bdev)
{
	struct bio *clone;
	int err;

	if (!mars_c_may_wait_for_io())
		return -EDEADLK;
	if (!bioset_initialized(&mars_bio_set))
		return -ENODEV;
	clone = bio_alloc_clone(bdev, bio, GFP_NOIO, &mars_bio_set);
	if (!clone)
		return -ENOMEM;
	clone->bi_opf &= ~REQ_RAHEAD;
	err = submit_bio_wait(clone);
	bio_put(clone);
	return err;
}

/* Returns NULL only without mars_c_block_init(). At most BIO_MAX_VECS. */
struct bio *mars_c_bio_new(struct block_device *bdev, unsigned int nr_vecs, blk_opf_t opf, u64 sector)
{
	struct bio *bio;

	if (!bioset_initialized(&mars_bio_set))
		return NULL;
	bio = bio_alloc_bioset(bdev, bio_max_segs(nr_vecs), opf, GFP_NOIO, &mars_bio_set);
	bio->bi_iter.bi_sector = sector;
	return bio;
}

/* Segments that mars_c_bio_add() needs at most. */
unsigned int mars_c_bio_vecs(void *addr, unsigned int len)
{
	return bio_add_max_vecs(addr, len);
}

/* Returns the number of bytes added; fewer only if @bio has no more vectors. */
unsigned int mars_c_bio_add(struct bio *bio, void *addr, unsigned int len)
{
	unsigned int done = 0;

	if (!is_vmalloc_addr(addr))
		return bio_add_page(bio, virt_to_page(addr), len, offset_in_page(addr));
	while (done < len) {
		unsigned int added = bio_add_vmalloc_chunk(bio, addr + done, len - done);

		if (!added)
			break;
		done += added;
	}
	return done;
}

/* Returns the number of bytes added; fewer only if @bio has no more vectors. */
unsigned int mars_c_bio_add_zeros(struct bio *bio, unsigned int len)
{
	unsigned int done = 0;

	while (done < len) {
		unsigned int part = min_t(unsigned int, len - done, PAGE_SIZE);

		if (bio_add_page(bio, ZERO_PAGE(0), part, 0) != part)
			break;
		done += part;
	}
	return done;
}

/* --- block: block device --- */

/*
 * With @holder: for writing, and for nobody else who asks for exclusive access
 * (mounts, arrays, volume groups, ...). Without: for reading.
 */
struct file *mars_c_bdev_open(const char *path, void *holder)
{
	blk_mode_t mode = BLK_OPEN_READ;
	struct block_device *bdev;
	struct file *file;
	int err;

	if (!bioset_initialized(&mars_bio_set))
		return ERR_PTR(-ENODEV);
	if (holder)
		mode |= BLK_OPEN_WRITE | BLK_OPEN_RESTRICT_WRITES;
	atomic_inc(&mars_block_users);
	scoped_mars_lookup()
		file = bdev_file_open_by_path(path, mode, holder, NULL);
	if (IS_ERR(file)) {
		mars_block_put();
		return file;
	}
	bdev = file_bdev(file);
	if (bdev->bd_disk->fops->owner == THIS_MODULE)
		err = -ELOOP;
	else if (bdev_is_zoned(bdev))
		err = -EOPNOTSUPP;
	else
		return file;
	mars_c_bdev_close(file);
	return ERR_PTR(err);
}

/*
 * The device really is closed on return: whoever stops using it may hand it
 * over, and unloading the module must not wait for what the caller only does
 * when it returns to user space.
 */
void mars_c_bdev_close(struct file *file)
{
	bdev_yield_claim(file);
	__fput_sync(file);
	mars_block_put();
}

u64 mars_c_bdev_size(struct block_device *bdev)
{
	return bdev_nr_bytes(bdev);
}

unsigned int mars_c_bdev_logical_block_size(struct block_device *bdev)
{
	return bdev_logical_block_size(bdev);
}

unsigned int mars_c_bdev_physical_block_size(struct block_device *bdev)
{
	return bdev_physical_block_size(bdev);
}

unsigned int mars_c_bdev_io_min(struct block_device *bdev)
{
	return bdev_io_min(bdev);
}

unsigned int mars_c_bdev_io_opt(struct block_device *bdev)
{
	return bdev_io_opt(bdev);
}

unsigned int mars_c_bdev_dma_alignment(struct block_device *bdev)
{
	return bdev_dma_alignment(bdev);
}

unsigned int mars_c_bdev_max_discard_sectors(struct block_device *bdev)
{
	return bdev_max_discard_sectors(bdev);
}

unsigned int mars_c_bdev_discard_granularity(struct block_device *bdev)
{
	return bdev_discard_granularity(bdev);
}

unsigned int mars_c_bdev_max_write_zeroes_sectors(struct block_device *bdev)
{
	return bdev_write_zeroes_sectors(bdev);
}

bool mars_c_bdev_write_cache(struct block_device *bdev)
{
	return bdev_write_cache(bdev);
}

bool mars_c_bdev_rotational(struct block_device *bdev)
{
	return bdev_rot(bdev);
}

/*
 * Synchronous; one bio at a time, of a size that fits into one and is a
 * multiple of every possible logical block size.
 */
int mars_c_bdev_rw(struct block_device *bdev, bool write, bool fua, void *addr, size_t len, u64 sector)
{
	blk_opf_t opf = write ? REQ_OP_WRITE | (fua ? REQ_FUA : 0) : REQ_OP_READ;

	if (!mars_c_may_wait_for_io())
		return -EDEADLK;
	while (len) {
		unsigned int part = min_t(size_t, len, 15 * SZ_64K);
		struct bio *bio = mars_c_bio_new(bdev, mars_c_bio_vecs(addr, part), opf, sector);
		int err;

		if (!bio)
			return -ENODEV;
		if (mars_c_bio_add(bio, addr, part) == part)
			err = submit_bio_wait(bio);
		else
			err = -EIO;
		bio_put(bio);
		if (err)
			return err;
		addr += part;
		len -= part;
		sector += part >> SECTOR_SHIFT;
	}
	return 0;
}

/* --- block: disk --- */

/* Copies a string that may not be one. */
static bool mars_copy_name(char *to, size_t len, const char *from)
{
	size_t i;

	for (i = 0; i + 1 < len; i++) {
		if (get_kernel_nofault(to[i], from + i))
			return false;
		if (!to[i])
			return i > 0;
		if (!isalnum(to[i]) && to[i] != '_' && to[i] != '-' && to[i] != '.')
			return false;
	}
	return false;
}

/*
 * Bio based, so nothing here limits what file systems build; ->submit_bio
 * splits at max_sectors. The data is copied when it is submitted, so pages
 * need not be stable (BLK_FEAT_STABLE_WRITES).
 */
struct gendisk *mars_c_disk_alloc(const struct block_device_operations *fops, void *private_data,
				  unsigned int logical_block_size, unsigned int physical_block_size,
				  unsigned int io_min, unsigned int io_opt,
				  unsigned int dma_alignment, bool write_cache, bool rotational,
				  unsigned int max_zeroes_sectors, unsigned int discard_granularity)
{
	struct queue_limits lim = {
		.features = BLK_FEAT_IO_STAT |
			    (write_cache ? BLK_FEAT_WRITE_CACHE | BLK_FEAT_FUA : 0) |
			    (rotational ? BLK_FEAT_ROTATIONAL : 0),
		.logical_block_size = logical_block_size,
		.physical_block_size = physical_block_size,
		.io_min = io_min,
		.io_opt = io_opt,
		.dma_alignment = dma_alignment,
		.max_hw_sectors = MARS_C_MAX_BIO_BYTES >> SECTOR_SHIFT,
		.max_segments = USHRT_MAX,
		.max_segment_size = UINT_MAX,
		.max_write_zeroes_sectors = max_zeroes_sectors,
		.max_hw_wzeroes_unmap_sectors = discard_granularity ? max_zeroes_sectors : 0,
		.max_hw_discard_sectors = discard_granularity ? max_zeroes_sectors : 0,
		.discard_granularity = discard_granularity,
	};
	struct gendisk *disk = blk_alloc_disk(&lim, NUMA_NO_NODE);

	if (IS_ERR(disk))
		return disk;
	disk->fops = fops;
	disk->private_data = private_data;
	disk->flags |= GENHD_FL_NO_PART;
	return disk;
}

/* Disks that are visible: the driver core answers a name's second use with a stack trace. */
struct mars_disk {
	struct list_head list;
	struct gendisk *disk;
};

static LIST_HEAD(mars_disks);
static DEFINE_MUTEX(mars_disks_lock);

static int mars_disk_register(struct gendisk *disk)
{
	struct mars_disk *new = kmalloc_obj(*new);
	struct mars_disk *old;

	if (!new)
		return -ENOMEM;
	new->disk = disk;
	guard(mutex)(&mars_disks_lock);
	list_for_each_entry(old, &mars_disks, list) {
		if (!strcmp(old->disk->disk_name, disk->disk_name)) {
			kfree(new);
			return -EEXIST;
		}
	}
	list_add(&new->list, &mars_disks);
	return 0;
}

static void mars_disk_unregister(struct gendisk *disk)
{
	struct mars_disk *d;

	guard(mutex)(&mars_disks_lock);
	list_for_each_entry(d, &mars_disks, list) {
		if (d->disk == disk) {
			list_del(&d->list);
			kfree(d);
			return;
		}
	}
}

/* On success ->free_disk must end with mars_c_disk_released(). */
int mars_c_disk_add(struct gendisk *disk, const char *name, u64 sectors)
{
	int err;

	if (snprintf(disk->disk_name, DISK_NAME_LEN, "mars/%s", name) >= DISK_NAME_LEN)
		return -ENAMETOOLONG;
	if (!bioset_initialized(&mars_bio_set))
		return -ENODEV;
	err = mars_disk_register(disk);
	if (err)
		return err;
	set_capacity(disk, sectors);
	atomic_inc(&mars_block_users);
	err = device_add_disk(NULL, disk, NULL);
	if (err) {
		mars_block_put();
		mars_disk_unregister(disk);
	}
	return err;
}

/* Undoes mars_c_disk_add(); the caller's reference remains. */
void mars_c_disk_del(struct gendisk *disk)
{
	del_gendisk(disk);
	mars_disk_unregister(disk);
}

void mars_c_disk_released(void)
{
	mars_block_put();
}

unsigned int mars_c_disk_openers(struct gendisk *disk)
{
	return disk_openers(disk);
}

/* What ->open and ->release are called under. */
void mars_c_disk_lock(struct gendisk *disk)
{
	mutex_lock(&disk->open_mutex);
}

void mars_c_disk_unlock(struct gendisk *disk)
{
	mutex_unlock(&disk->open_mutex);
}

/*
 * Says who has claimed the disk, as text without an end; returns its length.
 * The operations of file systems are not exported, but their names are known.
 * A holder of theirs is the super block or its type; which, is found out
 * without trusting either.
 */
int mars_c_disk_holder(struct gendisk *disk, char *buf, size_t len)
{
	struct block_device *bdev = disk->part0;
	struct file_system_type *type;
	struct block_device *sb_bdev;
	struct super_block *sb;
	const char *name;
	char text[32];
	int ret = 0;

	mutex_lock(&bdev->bd_holder_lock);
	if (!bdev->bd_holder)
		goto unlock;
	text[0] = 0;
	if (bdev->bd_holder_ops && bdev->bd_holder_ops->mark_dead)
		snprintf(text, sizeof(text), "%ps", bdev->bd_holder_ops->mark_dead);
	if (strcmp(text, "fs_bdev_mark_dead")) {
		ret = scnprintf(buf, len, "claimed");
		goto unlock;
	}
	/* The claim is given up before the super block goes away. */
	sb = bdev->bd_holder;
	type = bdev->bd_holder;
	if (!get_kernel_nofault(sb_bdev, &sb->s_bdev) && sb_bdev == bdev &&
	    get_kernel_nofault(type, &sb->s_type))
		type = bdev->bd_holder;
	if (!get_kernel_nofault(name, &type->name) && mars_copy_name(text, sizeof(text), name))
		ret = scnprintf(buf, len, "mounted %s", text);
	else
		ret = scnprintf(buf, len, "mounted");
unlock:
	mutex_unlock(&bdev->bd_holder_lock);
	return ret;
}

/* The calling process; @comm gets its name. */
int mars_c_current(char *comm, size_t len)
{
	strscpy(comm, current->comm, len);
	return task_tgid_nr(current);
}

/* --- threads --- */

/*
 * An I/O thread must not wait in reclaim for I/O that only it can complete, nor
 * be throttled for the dirty pages of others (see the loop driver).
 */
void mars_c_thread_enter(void)
{
	current->flags |= PF_MEMALLOC_NOIO | PF_LOCAL_THROTTLE;
}

/*
 * The page allocator lets real-time tasks have half of what it keeps back, also
 * where they can wait. (All of it, by PF_MEMALLOC, is only for those who never
 * use __GFP_NOFAIL, and file systems do.)
 */
bool mars_c_urgent_enter(void)
{
	if (!(current->flags & PF_KTHREAD) || rt_or_dl_task(current))
		return false;
	sched_set_fifo_low(current);
	return true;
}

void mars_c_urgent_leave(void)
{
	sched_set_normal(current, 0);
}

/* The non-blocking half of kthread_stop(): interruptible waits end. */
void mars_c_thread_hint(struct task_struct *task)
{
	set_tsk_thread_flag(task, TIF_NOTIFY_SIGNAL);
	wake_up_process(task);
}

bool mars_c_thread_is_current(struct task_struct *task)
{
	return task == current;
}

/* Instead of kthread_stop_put() by the thread itself: it now owns the module's text. */
void mars_c_thread_detach(struct task_struct *task)
{
	__module_get(THIS_MODULE);
	put_task_struct(task);
}

void mars_c_thread_exit_detached(void)
{
	module_put_and_kthread_exit(0);
}

/* --- events --- */

/* UINT_MAX stands for no limit, 0 for no waiting. */
static long mars_timeout(unsigned int ms)
{
	if (ms == UINT_MAX)
		return MAX_SCHEDULE_TIMEOUT;
	return msecs_to_jiffies(ms);
}

void mars_c_event_init(struct wait_queue_head *wq)
{
	init_waitqueue_head(wq);
}

void mars_c_event_signal(struct wait_queue_head *wq, unsigned int *set)
{
	/* Who set it before has woken, or is about to wake, everybody. */
	if (!xchg(set, 1))
		wake_up(wq);
}

static bool event_take(unsigned int *set)
{
	return READ_ONCE(*set) && xchg(set, 0);
}

bool mars_c_event_wait(struct wait_queue_head *wq, unsigned int *set, unsigned int ms)
{
	return wait_event_interruptible_timeout(*wq, event_take(set), mars_timeout(ms)) > 0;
}

bool mars_c_event_wait_us(struct wait_queue_head *wq, unsigned int *set, u64 us)
{
	ktime_t timeout = us_to_ktime(min_t(u64, us, USEC_PER_SEC * 3600));

	return !wait_event_interruptible_hrtimeout(*wq, event_take(set), timeout);
}

/* --- checksums --- */

static_assert(__alignof__(struct md5_ctx) <= 16);
static_assert(__alignof__(struct sha256_ctx) <= 16);
static_assert(__alignof__(struct hmac_sha256_ctx) <= 16);

void mars_c_md5_init(void *ctx)
{
	md5_init(ctx);
}

void mars_c_md5_update(void *ctx, const u8 *data, size_t len)
{
	md5_update(ctx, data, len);
}

void mars_c_md5_final(void *ctx, u8 *out)
{
	md5_final(ctx, out);
}

void mars_c_sha256_init(void *ctx)
{
	sha256_init(ctx);
}

void mars_c_sha256_update(void *ctx, const u8 *data, size_t len)
{
	sha256_update(ctx, data, len);
}

void mars_c_sha256_final(void *ctx, u8 *out)
{
	sha256_final(ctx, out);
}

void mars_c_hmac_init(void *ctx, const u8 *key, size_t key_len)
{
	hmac_sha256_init_usingrawkey(ctx, key, key_len);
}

void mars_c_hmac_update(void *ctx, const u8 *data, size_t len)
{
	hmac_sha256_update(ctx, data, len);
}

void mars_c_hmac_final(void *ctx, u8 *out)
{
	hmac_sha256_final(ctx, out);
}

/* --- files --- */

struct file *mars_c_file_open(const char *path, bool write, bool create, bool excl, bool truncate,
			      umode_t mode)
{
	/* O_NONBLOCK: what is not a regular file is refused, not waited for. */
	int flags = O_LARGEFILE | O_NOFOLLOW | O_NONBLOCK | (write ? O_RDWR : O_RDONLY) |
		    (create ? O_CREAT : 0) | (excl ? O_EXCL : 0) | (truncate ? O_TRUNC : 0);
	struct file *file;
	umode_t type;

	scoped_mars_lookup()
		file = filp_open(path, flags, mode);
	if (IS_ERR(file))
		return file;
	type = file_inode(file)->i_mode & S_IFMT;
	if (type != S_IFREG) {
		__fput_sync(file);
		return ERR_PTR(type == S_IFDIR ? -EISDIR : -EINVAL);
	}
	/*
	 * Each append would set the times of the file anew, which is a transaction of the file
	 * system: as much work as the append itself. Nobody needs them; a log tells its own.
	 */
	if (write)
		file->f_mode |= FMODE_NOCMTIME;
	return file;
}

/*
 * fput() of a kernel thread leaves the work to a workqueue: space would be freed,
 * and the file system could be unmounted, some time later only.
 */
void mars_c_file_close(struct file *file)
{
	__fput_sync(file);
}

static bool mars_range_ok(u64 pos, u64 len)
{
	u64 end;

	return !check_add_overflow(pos, len, &end) && end <= MAX_LFS_FILESIZE;
}

ssize_t mars_c_file_read(struct file *file, void *buf, size_t len, u64 pos)
{
	loff_t at = pos;

	if (!mars_range_ok(pos, len))
		return -EINVAL;
	return kernel_read(file, buf, len, &at);
}

ssize_t mars_c_file_write(struct file *file, const void *buf, size_t len, u64 pos)
{
	loff_t at = pos;

	/* kernel_write() would warn. */
	if (!(file->f_mode & FMODE_WRITE))
		return -EBADF;
	if (!mars_range_ok(pos, len))
		return -EFBIG;
	return kernel_write(file, buf, len, &at);
}

/* Describes @len bytes at @addr, physically contiguous pages in one piece. */
static unsigned int mars_fill_bvec(struct bio_vec *vec, const void *addr, size_t len)
{
	unsigned int used = 0;

	while (len) {
		unsigned int off = offset_in_page(addr);
		unsigned int part = min_t(size_t, len, PAGE_SIZE - off);
		struct page *page = is_vmalloc_addr(addr) ? vmalloc_to_page(addr) :
							    virt_to_page(addr);
		struct bio_vec *last = used ? &vec[used - 1] : NULL;

		if (last && !off &&
		    page_to_phys(last->bv_page) + last->bv_offset + last->bv_len ==
			    page_to_phys(page) &&
		    last->bv_len < SZ_1G)
			last->bv_len += part;
		else
			bvec_set_page(&vec[used++], page, part, off);
		addr += part;
		len -= part;
	}
	return used;
}

/* Returns the number of bytes done before the end of the file or an error. */
static ssize_t mars_file_rw_direct(struct file *file, const void *buf, size_t len, loff_t pos,
				   bool write, bool durable)
{
	struct bio_vec few[8], *vec = few;
	struct iov_iter iter;
	struct kiocb iocb;
	size_t max_vecs, done = 0;
	ssize_t ret = 0;

	if (!(file->f_mode & FMODE_CAN_ODIRECT))
		return -EOPNOTSUPP;
	if (!mars_range_ok(pos, len))
		return write ? -EFBIG : -EINVAL;
	if (!len)
		return 0;
	max_vecs = DIV_ROUND_UP(offset_in_page(buf) + len, PAGE_SIZE);
	if (max_vecs > ARRAY_SIZE(few)) {
		vec = kvmalloc_array(max_vecs, sizeof(*vec), GFP_NOIO);
		if (!vec)
			return -ENOMEM;
	}
	iov_iter_bvec(&iter, write ? ITER_SOURCE : ITER_DEST, vec,
		      mars_fill_bvec(vec, buf, len), len);

	while (iov_iter_count(&iter)) {
		init_sync_kiocb(&iocb, file);
		iocb.ki_pos = pos + done;
		iocb.ki_flags |= IOCB_DIRECT;
		if (write && durable)
			iocb.ki_flags |= IOCB_DSYNC;
		ret = write ? vfs_iocb_iter_write(file, &iocb, &iter) :
			      vfs_iocb_iter_read(file, &iocb, &iter);
		if (ret <= 0)
			break;
		done += ret;
	}
	if (vec != few)
		kvfree(vec);
	return ret < 0 ? ret : done;
}

ssize_t mars_c_file_read_direct(struct file *file, void *buf, size_t len, u64 pos)
{
	return mars_file_rw_direct(file, buf, len, pos, false, false);
}

ssize_t mars_c_file_write_direct(struct file *file, const void *buf, size_t len, u64 pos,
				 bool durable)
{
	return mars_file_rw_direct(file, buf, len, pos, true, durable);
}

unsigned int mars_c_file_dio_align(struct file *file)
{
	unsigned int align;
	struct kstat stat;

	if (!(file->f_mode & FMODE_CAN_ODIRECT) ||
	    vfs_getattr(&file->f_path, &stat, STATX_DIOALIGN, AT_STATX_SYNC_AS_STAT) ||
	    !(stat.result_mask & STATX_DIOALIGN) || !stat.dio_mem_align || !stat.dio_offset_align)
		return 0;
	align = max3(512U, stat.dio_mem_align, stat.dio_offset_align);
	return is_power_of_2(align) && align <= 4096 ? align : 0;
}

u64 mars_c_file_size(struct file *file)
{
	return i_size_read(file_inode(file));
}

int mars_c_file_truncate(struct file *file, u64 len)
{
	int err;

	if (len > MAX_LFS_FILESIZE)
		return -EFBIG;
	scoped_with_kernel_creds()
		err = vfs_truncate(&file->f_path, len);
	return err;
}

int mars_c_file_fallocate(struct file *file, bool keep_size, u64 pos, u64 len)
{
	if (!mars_range_ok(pos, len))
		return -EFBIG;
	return vfs_fallocate(file, keep_size ? FALLOC_FL_KEEP_SIZE : 0, pos, len);
}

int mars_c_file_sync(struct file *file, bool data_only)
{
	return vfs_fsync(file, data_only);
}

/*
 * Known of ext4: all data is on the one disk that it is mounted from, and an
 * overwrite by direct I/O changes nothing but blocks.
 */
bool mars_c_file_can_flush_device(struct file *file)
{
	struct super_block *sb = file_inode(file)->i_sb;

	return sb->s_magic == EXT4_SUPER_MAGIC && sb->s_bdev;
}

/*
 * With what a sync would have found: that writes were turned into buffered ones
 * which failed, or (by a write of nothing) that the journal has failed.
 */
int mars_c_file_flush_device(struct file *file)
{
	loff_t pos = 0;
	ssize_t usable;
	int err, late;

	if (!mars_c_file_can_flush_device(file))
		return -EOPNOTSUPP;
	/* Data is journalled since the file was opened. */
	if (!mars_c_file_dio_align(file))
		return vfs_fsync(file, 1);
	err = blkdev_issue_flush(file_inode(file)->i_sb->s_bdev);
	late = file_check_and_advance_wb_err(file);
	usable = kernel_write(file, "", 0, &pos);
	if (!err)
		err = late;
	return err || usable >= 0 ? err : usable;
}

/* The unit that the disk below writes at once, up to a block of a file system. */
unsigned int mars_c_file_disk_block(struct file *file)
{
	struct block_device *bdev = file_inode(file)->i_sb->s_bdev;
	unsigned int size = bdev ? bdev_physical_block_size(bdev) : 0;

	return is_power_of_2(size) ? min(size, 4096U) : 0;
}

int mars_c_file_drop_cache(struct file *file, u64 pos, u64 len)
{
	if (!mars_range_ok(pos, len))
		return -EINVAL;
	return vfs_fadvise(file, pos, len, POSIX_FADV_DONTNEED);
}

bool mars_c_file_is_unlinked(struct file *file)
{
	return !file_inode(file)->i_nlink;
}

/* --- names --- */

struct file *mars_c_dir_open(const char *path)
{
	struct file *dir;

	scoped_mars_lookup()
		dir = filp_open(path, O_LARGEFILE | O_RDONLY | O_DIRECTORY, 0);
	return dir;
}

struct mars_dir_context {
	struct dir_context ctx;
	u8 *buf;
	size_t size;
	size_t used;
};

static bool mars_dir_actor(struct dir_context *ctx, const char *name, int len, loff_t pos, u64 ino,
			   unsigned int type)
{
	struct mars_dir_context *out = container_of(ctx, struct mars_dir_context, ctx);

	if (len <= 0 || len > NAME_MAX)
		return true;
	if (name[0] == '.' && (len == 1 || (len == 2 && name[1] == '.')))
		return true;
	if (out->size - out->used < 2 + len)
		return false;
	out->buf[out->used++] = type & S_DT_MASK;
	out->buf[out->used++] = len;
	memcpy(out->buf + out->used, name, len);
	out->used += len;
	return true;
}

/* Fills @buf with entries {type, length, name}; 0 at the end of the directory. */
ssize_t mars_c_dir_read(struct file *dir, u8 *buf, size_t size)
{
	struct mars_dir_context out = {
		.ctx.actor = mars_dir_actor,
		.ctx.count = INT_MAX,
		.buf = buf,
		.size = size,
	};
	int err;

	err = iterate_dir(dir, &out.ctx);
	return err ? err : out.used;
}

ssize_t mars_c_read_link(const char *path, u8 *buf, size_t size, s64 *sec, u32 *nsec)
{
	DEFINE_DELAYED_CALL(done);
	struct timespec64 stamp;
	const char *value;
	struct path at;
	ssize_t ret;

	scoped_mars_lookup()
		ret = kern_path(path, 0, &at);
	if (ret)
		return ret;
	value = vfs_get_link(at.dentry, &done);
	if (IS_ERR(value)) {
		ret = PTR_ERR(value);
	} else {
		ret = strlen(value);
		if (ret <= size)
			memcpy(buf, value, ret);
		else
			ret = -ENAMETOOLONG;
		stamp = inode_get_mtime(d_inode(at.dentry));
		*sec = stamp.tv_sec;
		*nsec = stamp.tv_nsec;
	}
	do_delayed_call(&done);
	path_put(&at);
	return ret;
}

/*
 * Finds the directory of @path; @last is a part of @path. What a peer has sent
 * as a link must never lead what is written to somewhere else.
 */
static int mars_parent(const char *path, struct path *parent, struct qstr *last)
{
	const char *name = strrchr(path, '/');
	char *dir;
	int err;

	if (path[0] != '/' || !name || !name[1])
		return -EINVAL;
	dir = kstrndup(path, name == path ? 1 : name - path, GFP_KERNEL);
	if (!dir)
		return -ENOMEM;
	*last = QSTR(name + 1);
	scoped_mars_lookup()
		err = kern_path(dir, LOOKUP_NO_SYMLINKS | LOOKUP_DIRECTORY, parent);
	kfree(dir);
	return err;
}

/* The caller has write access to the mount. */
static int mars_remove(const struct path *parent, struct qstr *name, bool directory)
{
	struct mnt_idmap *idmap = mnt_idmap(parent->mnt);
	struct inode *dir = d_inode(parent->dentry);
	struct inode *inode;
	struct dentry *d;
	int err;

	d = start_removing(idmap, parent->dentry, name);
	if (IS_ERR(d))
		return PTR_ERR(d);
	/* Truncation may take long: after the directory was unlocked. */
	inode = d_inode(d);
	ihold(inode);
	err = directory ? vfs_rmdir(idmap, dir, d, NULL) : vfs_unlink(idmap, dir, d, NULL);
	end_removing(d);
	iput(inode);
	return err;
}

static int mars_remove_path(const char *path, bool directory)
{
	struct path parent;
	struct qstr last;
	int err;

	err = mars_parent(path, &parent, &last);
	if (err)
		return err;
	err = mnt_want_write(parent.mnt);
	if (!err) {
		scoped_with_kernel_creds()
			err = mars_remove(&parent, &last, directory);
		mnt_drop_write(parent.mnt);
	}
	path_put(&parent);
	return err;
}

int mars_c_unlink(const char *path)
{
	return mars_remove_path(path, false);
}

int mars_c_rmdir(const char *path)
{
	return mars_remove_path(path, true);
}

/* Makes the link @tmp with its time stamp and renames it to @last. */
static int mars_make_link(const struct path *parent, struct qstr *tmp, struct qstr *last,
			  const char *value, struct timespec64 stamp)
{
	struct mnt_idmap *idmap = mnt_idmap(parent->mnt);
	struct renamedata rd = {
		.mnt_idmap = idmap,
		.old_parent = parent->dentry,
		.new_parent = parent->dentry,
	};
	struct iattr attr = {
		.ia_valid = ATTR_CTIME | ATTR_ATIME | ATTR_ATIME_SET | ATTR_MTIME |
			    ATTR_MTIME_SET | ATTR_TIMES_SET,
		.ia_atime = stamp,
		.ia_mtime = stamp,
	};
	struct dentry *d;
	int err;

	/* A crash may have left it. */
	err = mars_remove(parent, tmp, false);
	if (err && err != -ENOENT)
		return err;

	d = start_creating(idmap, parent->dentry, tmp);
	if (IS_ERR(d))
		return PTR_ERR(d);
	err = vfs_symlink(idmap, d_inode(parent->dentry), d, value, NULL);
	d = end_creating_keep(d);
	if (err)
		goto out;
	if (!d_really_is_positive(d)) {
		err = -EIO;
		goto out_remove;
	}

	inode_lock(d_inode(d));
	err = notify_change(idmap, d, &attr, NULL);
	inode_unlock(d_inode(d));
	if (err)
		goto out_remove;

	err = start_renaming_dentry(&rd, 0, d, last);
	if (err)
		goto out_remove;
	err = vfs_rename(&rd);
	end_renaming(&rd);
	if (!err)
		goto out;
out_remove:
	mars_remove(parent, tmp, false);
out:
	dput(d);
	return err;
}

#define LINK_LOCK(i) __MUTEX_INITIALIZER(mars_link_locks[i])

/* Two writers of one link would use the same temporary name. */
static struct mutex mars_link_locks[] = {
	LINK_LOCK(0), LINK_LOCK(1), LINK_LOCK(2), LINK_LOCK(3),
	LINK_LOCK(4), LINK_LOCK(5), LINK_LOCK(6), LINK_LOCK(7),
};

int mars_c_replace_link(const char *path, const char *value, s64 sec, u32 nsec)
{
	struct timespec64 stamp = { .tv_sec = sec, .tv_nsec = nsec };
	struct qstr last, tmp;
	struct path parent;
	struct mutex *lock; /* one of mars_link_locks */
	char *name;
	int err;

	if (nsec >= NSEC_PER_SEC || !value[0])
		return -EINVAL;
	err = mars_parent(path, &parent, &last);
	if (err)
		return err;
	err = -ENOMEM;
	name = kasprintf(GFP_KERNEL, ".tmp-%s", last.name);
	if (!name)
		goto out_path;
	tmp = QSTR(name);

	err = mnt_want_write(parent.mnt);
	if (err)
		goto out_name;
	lock = &mars_link_locks[full_name_hash(d_inode(parent.dentry), last.name, last.len) %
				ARRAY_SIZE(mars_link_locks)];
	mutex_lock(lock);
	scoped_with_kernel_creds()
		err = mars_make_link(&parent, &tmp, &last, value, stamp);
	mutex_unlock(lock);
	mnt_drop_write(parent.mnt);
out_name:
	kfree(name);
out_path:
	path_put(&parent);
	return err;
}

static int mars_mkdir(const char *path, umode_t mode)
{
	struct path parent;
	struct dentry *d;
	int err;

	d = start_creating_path(AT_FDCWD, path, &parent, LOOKUP_DIRECTORY);
	if (IS_ERR(d))
		return PTR_ERR(d);
	d = vfs_mkdir(mnt_idmap(parent.mnt), d_inode(parent.dentry), d, mode, NULL);
	err = IS_ERR(d) ? PTR_ERR(d) : 0;
	end_creating_path(&parent, d);
	return err;
}

int mars_c_mkdir_p(const char *path, umode_t mode)
{
	char *copy, *end;
	struct path at;
	int err = 0;

	if (path[0] != '/')
		return -EINVAL;
	copy = kstrdup(path, GFP_KERNEL);
	if (!copy)
		return -ENOMEM;
	scoped_mars_lookup() {
		for (end = strchr(copy + 1, '/'); end; end = strchr(end + 1, '/')) {
			*end = '\0';
			err = kern_path(copy, LOOKUP_NO_SYMLINKS | LOOKUP_DIRECTORY, &at);
			if (!err)
				path_put(&at);
			else if (err == -ENOENT)
				err = mars_mkdir(copy, mode);
			if (err && err != -EEXIST)
				break;
			*end = '/';
			err = 0;
		}
		if (!err)
			err = mars_mkdir(copy, mode);
		if (err == -EEXIST) {
			err = kern_path(copy, LOOKUP_NO_SYMLINKS | LOOKUP_DIRECTORY, &at);
			if (!err)
				path_put(&at);
		}
	}
	kfree(copy);
	return err;
}

int mars_c_rename(const char *from, const char *to)
{
	struct path old_parent, new_parent;
	struct qstr old_last, new_last;
	struct renamedata rd = { };
	int err;

	err = mars_parent(from, &old_parent, &old_last);
	if (err)
		return err;
	err = mars_parent(to, &new_parent, &new_last);
	if (err)
		goto out_old;
	err = -EXDEV;
	if (old_parent.mnt != new_parent.mnt)
		goto out_new;
	err = mnt_want_write(old_parent.mnt);
	if (err)
		goto out_new;
	scoped_with_kernel_creds() {
		rd.mnt_idmap = mnt_idmap(old_parent.mnt);
		rd.old_parent = old_parent.dentry;
		rd.new_parent = new_parent.dentry;
		err = start_renaming(&rd, 0, &old_last, &new_last);
		if (!err) {
			err = vfs_rename(&rd);
			end_renaming(&rd);
		}
	}
	mnt_drop_write(old_parent.mnt);
out_new:
	path_put(&new_parent);
out_old:
	path_put(&old_parent);
	return err;
}

int mars_c_sync_dir(const char *path)
{
	struct file *dir = mars_c_dir_open(path);
	int err;

	if (IS_ERR(dir))
		return PTR_ERR(dir);
	err = vfs_fsync(dir, 0);
	__fput_sync(dir);
	return err;
}

int mars_c_sync_fs(const char *path)
{
	struct super_block *sb;
	struct path at;
	int err;

	scoped_mars_lookup()
		err = kern_path(path, LOOKUP_FOLLOW, &at);
	if (err)
		return err;
	sb = at.dentry->d_sb;
	down_read(&sb->s_umount);
	err = sync_filesystem(sb);
	up_read(&sb->s_umount);
	path_put(&at);
	return err;
}

/* 1 when something is mounted at @path, 0 when it is a part of its parent's mount. */
int mars_c_is_mount_root(const char *path)
{
	struct path at;
	int err;

	scoped_mars_lookup()
		err = kern_path(path, LOOKUP_FOLLOW | LOOKUP_DIRECTORY, &at);
	if (err)
		return err;
	err = path_equal(&at, &(struct path){ .mnt = at.mnt, .dentry = at.mnt->mnt_root });
	path_put(&at);
	return err;
}

int mars_c_statfs(const char *path, u64 *total, u64 *avail)
{
	struct kstatfs stat;
	struct path at;
	int err;

	scoped_mars_lookup()
		err = kern_path(path, LOOKUP_FOLLOW, &at);
	if (err)
		return err;
	err = vfs_statfs(&at, &stat);
	path_put(&at);
	if (err)
		return err;
	if (check_mul_overflow((u64)stat.f_blocks, (u64)stat.f_frsize, total) ||
	    check_mul_overflow((u64)stat.f_bavail, (u64)stat.f_frsize, avail))
		return -EOVERFLOW;
	return 0;
}

int mars_c_stat(const char *path, u8 *type, u64 *size, s64 *sec, u32 *nsec)
{
	struct kstat stat;
	struct path at;
	int err;

	scoped_mars_lookup()
		err = kern_path(path, 0, &at);
	if (err)
		return err;
	err = vfs_getattr(&at, &stat, STATX_BASIC_STATS, AT_STATX_SYNC_AS_STAT);
	path_put(&at);
	if (err)
		return err;
	*type = S_DT(stat.mode);
	*size = stat.size;
	*sec = stat.mtime.tv_sec;
	*nsec = stat.mtime.tv_nsec;
	return 0;
}

/* --- sockets --- */

/* As the network block device does: never wait in reclaim, small messages at once. */
static void mars_sock_setup(struct socket *sock)
{
	sock->sk->sk_allocation = GFP_NOIO;
	sock->sk->sk_use_task_frag = false;
	tcp_sock_set_nodelay(sock->sk);
}

static int mars_sockaddr(struct sockaddr_storage *ss, bool v6, const u8 *addr, u16 port, u32 scope)
{
	struct sockaddr_in *in = (struct sockaddr_in *)ss;

	memset(ss, 0, sizeof(*ss));
	if (v6) {
		struct sockaddr_in6 *in6 = (struct sockaddr_in6 *)ss;

		in6->sin6_family = AF_INET6;
		in6->sin6_port = htons(port);
		in6->sin6_scope_id = scope;
		memcpy(&in6->sin6_addr, addr, sizeof(in6->sin6_addr));
		return sizeof(*in6);
	}
	in->sin_family = AF_INET;
	in->sin_port = htons(port);
	memcpy(&in->sin_addr, addr, sizeof(in->sin_addr));
	return sizeof(*in);
}

int mars_c_sock_connect(struct socket **res, bool v6, const u8 *addr, u16 port, u32 scope,
			unsigned int ms)
{
	struct sockaddr_storage ss;
	struct socket *sock;
	int err, len;

	err = sock_create_kern(&init_net, v6 ? AF_INET6 : AF_INET, SOCK_STREAM, IPPROTO_TCP, &sock);
	if (err)
		return err;
	mars_sock_setup(sock);
	WRITE_ONCE(sock->sk->sk_sndtimeo, mars_timeout(ms));
	len = mars_sockaddr(&ss, v6, addr, port, scope);
	err = kernel_connect(sock, (struct sockaddr_unsized *)&ss, len, 0);
	if (err) {
		sock_release(sock);
		return err;
	}
	*res = sock;
	return 0;
}

int mars_c_sock_listen(struct socket **res, bool v6, u16 port, int backlog)
{
	static const u8 any[16];
	struct sockaddr_storage ss;
	struct socket *sock;
	int err, len;

	err = sock_create_kern(&init_net, v6 ? AF_INET6 : AF_INET, SOCK_STREAM, IPPROTO_TCP, &sock);
	if (err)
		return err;
	mars_sock_setup(sock);
	sock_set_reuseaddr(sock->sk);
	/* Whatever the system's default: IPv4 peers arrive here, too. */
	if (v6)
		sock->sk->sk_ipv6only = false;
	len = mars_sockaddr(&ss, v6, any, port, 0);
	err = kernel_bind(sock, (struct sockaddr_unsized *)&ss, len);
	if (!err)
		err = kernel_listen(sock, backlog);
	if (err) {
		sock_release(sock);
		return err;
	}
	*res = sock;
	return 0;
}

int mars_c_sock_accept(struct socket *listener, struct socket **res, unsigned int ms)
{
	struct socket *sock;
	int err;

	WRITE_ONCE(listener->sk->sk_rcvtimeo, mars_timeout(ms));
	err = kernel_accept(listener, &sock, 0);
	if (err)
		return err;
	mars_sock_setup(sock);
	*res = sock;
	return 0;
}

ssize_t mars_c_sock_send(struct socket *sock, const void *head, size_t head_len, const void *data,
			 size_t data_len, unsigned int ms)
{
	struct msghdr msg = { .msg_flags = MSG_NOSIGNAL };
	struct kvec vec[2];
	size_t nr = 0;

	if (head_len)
		vec[nr++] = (struct kvec){ .iov_base = (void *)head, .iov_len = head_len };
	if (data_len)
		vec[nr++] = (struct kvec){ .iov_base = (void *)data, .iov_len = data_len };
	WRITE_ONCE(sock->sk->sk_sndtimeo, mars_timeout(ms));
	return kernel_sendmsg(sock, &msg, vec, nr, head_len + data_len);
}

ssize_t mars_c_sock_recv(struct socket *sock, void *buf, size_t len, bool all, bool peek,
			 unsigned int ms)
{
	int flags = (all ? MSG_WAITALL : 0) | (peek ? MSG_PEEK : 0);
	struct kvec vec = { .iov_base = buf, .iov_len = len };
	struct msghdr msg = { };

	WRITE_ONCE(sock->sk->sk_rcvtimeo, mars_timeout(ms));
	return kernel_recvmsg(sock, &msg, &vec, 1, len, flags);
}

void mars_c_sock_shutdown(struct socket *sock)
{
	kernel_sock_shutdown(sock, SHUT_RDWR);
}

int mars_c_sock_peer(struct socket *sock, bool *v6, u8 *addr, u16 *port, u32 *scope)
{
	struct sockaddr_storage ss = { };
	int err;

	err = kernel_getpeername(sock, (struct sockaddr *)&ss);
	if (err < 0)
		return err;
	*v6 = ss.ss_family == AF_INET6;
	if (*v6) {
		struct sockaddr_in6 *in6 = (struct sockaddr_in6 *)&ss;

		memcpy(addr, &in6->sin6_addr, sizeof(in6->sin6_addr));
		*port = ntohs(in6->sin6_port);
		*scope = in6->sin6_scope_id;
	} else {
		struct sockaddr_in *in = (struct sockaddr_in *)&ss;

		memcpy(addr, &in->sin_addr, sizeof(in->sin_addr));
		*port = ntohs(in->sin_port);
		*scope = 0;
	}
	return 0;
}

void mars_c_sock_nodelay(struct socket *sock)
{
	tcp_sock_set_nodelay(sock->sk);
}

void mars_c_sock_quickack(struct socket *sock)
{
	tcp_sock_set_quickack(sock->sk, 1);
}

int mars_c_sock_keepalive(struct socket *sock, int idle, int interval, int count)
{
	int err;

	err = tcp_sock_set_keepidle(sock->sk, idle);
	if (!err)
		err = tcp_sock_set_keepintvl(sock->sk, interval);
	if (!err)
		err = tcp_sock_set_keepcnt(sock->sk, count);
	if (!err)
		sock_set_keepalive(sock->sk);
	return err;
}

int mars_c_sock_user_timeout(struct socket *sock, int ms)
{
	return tcp_sock_set_user_timeout(sock->sk, ms);
}

/* 0 leaves a direction to the kernel's automatic tuning. */
void mars_c_sock_bufs(struct socket *sock, int send, int receive)
{
	struct sock *sk = sock->sk;

	if (send > 0) {
		lock_sock(sk);
		sk->sk_userlocks |= SOCK_SNDBUF_LOCK;
		WRITE_ONCE(sk->sk_sndbuf, clamp(send, SOCK_MIN_SNDBUF / 2, INT_MAX / 2) * 2);
		sk->sk_write_space(sk);
		release_sock(sk);
	}
	if (receive > 0)
		sock_set_rcvbuf(sk, min(receive, INT_MAX / 2));
}

/* The number of a network interface, 0 if there is none of this name. */
int mars_c_ifindex(const char *name)
{
	struct net_device *dev = dev_get_by_name(&init_net, name);
	int index = 0;

	if (dev) {
		index = dev->ifindex;
		dev_put(dev);
	}
	return index;
}

/* --- the machine --- */

u64 mars_c_memory_bytes(void)
{
	struct sysinfo info;

	si_meminfo(&info);
	return (u64)info.totalram * info.mem_unit;
}

int mars_c_nodename(char *buf, size_t size)
{
	return strscpy(buf, init_utsname()->nodename, size);
}

#ifdef MARS_INJECT
static int mars_die(void *unused)
{
	panic("mars: the fault injector lets this host die");
	return 0;
}

/*
 * The fault injector's loss of power. First all other processors stand still,
 * since a panic takes its time to tell of itself.
 */
void mars_c_die(void)
{
	stop_machine(mars_die, NULL, NULL);
}
#endif
