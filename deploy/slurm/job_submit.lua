-- Asks Apolo Credits about every job that is submitted or changed. Goes next to slurm.conf, beside
-- credits_hook.lua and credits_hook.conf; slurm.conf says JobSubmitPlugins=lua.
--
-- A site with a job_submit.lua of its own takes these three lines into it, and returns what they return
-- where it is not slurm.SUCCESS. A fault while loading keeps the script that was in force before.
local here = debug.getinfo(1, "S").source:match("^@(.*)/") or "."
local hook = dofile(here .. "/credits_hook.lua")
local credits = hook.new({ slurm = slurm, directory = here, socket = require("socket") })

function slurm_job_submit(job, partitions, submit_uid)
  return credits.submit(job, partitions, submit_uid)
end

function slurm_job_modify(job, record, partitions, modify_uid)
  return credits.modify(job, record, partitions, modify_uid)
end

return slurm.SUCCESS
