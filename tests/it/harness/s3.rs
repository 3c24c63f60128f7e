//! Plain S3 on a test's bucket: for looking at results, and for spoiling them.

use aws_sdk_s3::Client;

use super::services::Place;

/// A test's bucket.
pub struct S3 {
    client: Client,
    bucket: String,
}

impl S3 {
    pub fn of(place: &Place) -> Self {
        let (client, bucket) = place.s3();
        Self { client, bucket: bucket.to_owned() }
    }

    /// An object's bytes and metadata.
    pub async fn get(&self, key: &str) -> (Vec<u8>, Vec<(String, String)>) {
        let object = self.client.get_object().bucket(&self.bucket).key(key).send().await.unwrap();
        let metadata = object.metadata.clone().unwrap_or_default().into_iter().collect();
        (object.body.collect().await.unwrap().to_vec(), metadata)
    }

    pub async fn put(&self, key: &str, metadata: &[(String, String)], bytes: Vec<u8>) {
        let put = self.client.put_object().bucket(&self.bucket).key(key).body(bytes.into());
        put.set_metadata(Some(metadata.iter().cloned().collect())).send().await.unwrap();
    }

    pub async fn delete(&self, key: &str) {
        self.client.delete_object().bucket(&self.bucket).key(key).send().await.unwrap();
    }
}
