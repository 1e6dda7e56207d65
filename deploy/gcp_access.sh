#!/usr/bin/env bash
# Makes what deploy/gcp.yaml names on Google Cloud: a network that nobody enters but by ssh from one address, and the
# two accounts of the machines. Both may read the bucket of the videos, and read and write the bucket of the runs; the
# head may start and end machines besides. Run again, it makes what is missing.
#     bash deploy/gcp_access.sh PROJECT VIDEOS_BUCKET RUNS_BUCKET SSH_FROM
# SSH_FROM is your own address as others see it, such as 203.0.113.7/32.
set -euo pipefail

if [ $# -ne 4 ]; then
    echo "expected PROJECT VIDEOS_BUCKET RUNS_BUCKET SSH_FROM, got $# arguments" >&2
    exit 2
fi
project=$1 videos=$2 runs=$3 ssh_from=$4
case $ssh_from in
    */0) echo "SSH_FROM: expected the addresses that you come from, got $ssh_from: the whole world" >&2; exit 2 ;;
    */*) ;;
    *) echo "SSH_FROM: expected addresses such as 203.0.113.7/32, got $ssh_from" >&2; exit 2 ;;
esac
region=us-central1 range=10.10.0.0/16 name=video-fisher

cloud() { gcloud --quiet --project "$project" "$@"; }
# missing KIND... NAME [FLAG...]: whether `describe` does not know it
missing() { ! cloud "$@" > /dev/null 2>&1; }

missing compute networks describe $name && cloud compute networks create $name --subnet-mode custom
missing compute networks subnets describe $name --region $region &&
    cloud compute networks subnets create $name --network $name --region $region --range $range
missing compute firewall-rules describe $name-inside &&
    cloud compute firewall-rules create $name-inside --network $name --allow all --source-ranges $range
if missing compute firewall-rules describe $name-ssh; then
    cloud compute firewall-rules create $name-ssh --network $name --allow tcp:22 --source-ranges "$ssh_from"
else
    cloud compute firewall-rules update $name-ssh --source-ranges "$ssh_from"
fi

for account in $name $name-head; do
    email=$account@$project.iam.gserviceaccount.com
    missing iam service-accounts describe "$email" && cloud iam service-accounts create $account
    cloud storage buckets add-iam-policy-binding "gs://$videos" --role roles/storage.objectViewer --member "serviceAccount:$email"
    cloud storage buckets add-iam-policy-binding "gs://$runs" --role roles/storage.objectUser --member "serviceAccount:$email"
done
head=serviceAccount:$name-head@$project.iam.gserviceaccount.com
cloud projects add-iam-policy-binding "$project" --role roles/compute.instanceAdmin.v1 --member "$head" --condition None
# It may give machines the workers' account and no other.
cloud iam service-accounts add-iam-policy-binding "$name@$project.iam.gserviceaccount.com" \
    --role roles/iam.serviceAccountUser --member "$head"
